// @ts-check
/**
 * Scrolls to the newest text automatically until the user scrolls up.
 */

/** Follow the end again once the user scrolls this close to it, in CSS pixels. */
const STICK_DISTANCE_PX = 48;

/** Keeps a scrolling element at its end, and shows a button to return there. */
export class StickyScroll {
  #scroller;
  #button;
  #isStuck = true;
  #lastTop = 0;

  /** @param {HTMLElement} scroller @param {HTMLElement} button jumps to the end */
  constructor(scroller, button) {
    this.#scroller = scroller;
    this.#button = button;
    scroller.addEventListener("scroll", () => this.#handleScroll(), { passive: true });
    button.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  /** Scroll to the end and keep following it. */
  toEnd() {
    this.#isStuck = true;
    this.follow();
  }

  /** Scroll to the end if it is being followed. Call this when the content has grown. */
  follow() {
    if (this.#isStuck) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#lastTop = this.#scroller.scrollTop;
    this.#button.hidden = this.#isStuck || this.#distance() <= 1;
  }

  #handleScroll() {
    const { scrollTop } = this.#scroller;
    const distance = this.#distance();
    // Scrolling up, even by a pixel, means that the user left the end. Shrinking text scrolls up as
    // well, but stays at the end.
    if (scrollTop < this.#lastTop && distance > 1) this.#isStuck = false;
    else if (scrollTop > this.#lastTop && distance <= STICK_DISTANCE_PX) this.#isStuck = true;
    this.#lastTop = scrollTop;
    this.#button.hidden = this.#isStuck;
  }

  #distance() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight;
  }
}
