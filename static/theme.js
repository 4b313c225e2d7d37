// @ts-check
// This is a classic script: it runs before the first paint, so that a dark page does not flash white.
(() => {
  try {
    const theme = JSON.parse(localStorage.getItem("tokenwire.v1.theme") ?? "null");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Without storage, the page uses the system theme.
  }
})();
