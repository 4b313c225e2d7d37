// @ts-check
// Not a module: it runs before the first paint, so that a dark page never flashes white.
(() => {
  try {
    const theme = JSON.parse(localStorage.getItem("tokenwire.v1.theme") ?? "null");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Without storage the page follows the system.
  }
})();
