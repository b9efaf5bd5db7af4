// @ts-check
/** When the page is drawn, and where it stands while it grows. */

/** @type {Set<() => void>} */
const waiting = new Set();
/** @type {number | null} */
let frame = null;

/** Runs `draw` once before the next frame. A hidden tab has no frames, so it runs soon there. @param {() => void} draw */
export function paint(draw) {
  waiting.add(draw);
  if (frame !== null) return;
  frame = document.hidden ? setTimeout(paintNow, 200) : requestAnimationFrame(paintNow);
}

function paintNow() {
  frame = null;
  const draws = [...waiting];
  waiting.clear();
  for (const draw of draws) draw();
}

// A tab that is hidden now does not get the frame that it asked for.
document.addEventListener("visibilitychange", () => {
  if (document.hidden && frame !== null) paintNow();
});

/**
 * Keeps a scroller at its end while the reader is there, and leaves it alone otherwise.
 *
 * The browser says when the content has another size, so that nothing has to be laid out to look.
 *
 * @param {HTMLElement} scroller
 * @param {HTMLElement} content what grows in it
 * @param {HTMLElement} [button] shown while the reader is elsewhere; leads back
 * @returns {() => void} goes to the end and follows again
 */
export function followEnd(scroller, content, button) {
  let following = true;
  let lastTop = 0;
  const distance = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  const follow = () => {
    if (following && content.childElementCount) scroller.scrollTop = scroller.scrollHeight;
    // Content that shrank moves the scroller, too, which no reader did.
    lastTop = scroller.scrollTop;
    if (button) button.hidden = following || distance() < 8;
  };
  const toEnd = () => {
    following = true;
    follow();
  };
  scroller.addEventListener("scroll", () => {
    if (distance() < 8) following = true;
    else if (scroller.scrollTop < lastTop) following = false;
    lastTop = scroller.scrollTop;
    if (button) button.hidden = following;
  });
  // A reader who opens a card wants to read it, and is no longer at the end.
  scroller.addEventListener("click", (event) => {
    if (event.target instanceof Element && event.target.closest("summary")) following = false;
  });
  scroller.addEventListener("toggle", () => (following = distance() < 8), true);
  button?.addEventListener("click", () => {
    toEnd();
    scroller.focus();
  });
  // The browser's own scrolling is slow, and the end has moved on when it arrives.
  scroller.addEventListener("keydown", (event) => {
    if (event.key !== "End" || event.shiftKey || event.target !== scroller) return;
    event.preventDefault();
    toEnd();
  });
  const sizes = new ResizeObserver(follow);
  sizes.observe(scroller);
  sizes.observe(content);
  return toEnd;
}
