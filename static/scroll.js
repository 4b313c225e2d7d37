// @ts-check
/**
 * Keeps the newest text in sight, as long as the reader has not scrolled away from it.
 */

/** How near to the end the reader has to come back for it to be followed again, in CSS pixels. */
const STICK_DISTANCE_PX = 48;

export class StickyScroll {
  #scroller;
  #button;
  #isStuck = true;
  #lastTop = 0;

  /** @param {HTMLElement} scroller @param {HTMLElement} button leads back to the end */
  constructor(scroller, button) {
    this.#scroller = scroller;
    this.#button = button;
    scroller.addEventListener("scroll", () => this.#handleScroll(), { passive: true });
    button.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  /** Go to the end and stay there. */
  toEnd() {
    this.#isStuck = true;
    this.follow();
  }

  /** To be called when the content has grown. */
  follow() {
    if (this.#isStuck) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#lastTop = this.#scroller.scrollTop;
    this.#button.hidden = this.#isStuck || this.#distance() <= 1;
  }

  #handleScroll() {
    const { scrollTop } = this.#scroller;
    const distance = this.#distance();
    // Only the reader scrolls up and away from the end, be it by a pixel; text that shrinks scrolls
    // up too, but stays at the end.
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
