// @ts-check
/** When the page is drawn, and where it stands while it grows. */

/** @type {Set<() => void>} */
const waiting = new Set();
/** @type {number | null} */
let frame = null;
/** @type {Set<() => void>} */
const afterwards = new Set();

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
  for (const follow of afterwards) follow();
}

// A tab that is hidden now does not get the frame that it asked for.
document.addEventListener("visibilitychange", () => {
  if (document.hidden && frame !== null) paintNow();
});

/**
 * Keeps a scroller at its end while the reader is there, and leaves it alone otherwise.
 *
 * @param {HTMLElement} scroller
 * @param {HTMLElement} button shown while the reader is elsewhere; leads back
 * @returns {() => void} goes to the end and follows again
 */
export function followEnd(scroller, button) {
  let following = true;
  let lastTop = 0;
  const distance = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  const follow = () => {
    // The welcome is read from its beginning.
    if (following && scroller.querySelector(".turn")) scroller.scrollTop = scroller.scrollHeight;
    button.hidden = following || distance() < 8;
  };
  scroller.addEventListener("scroll", () => {
    if (distance() < 8) following = true;
    else if (scroller.scrollTop < lastTop) following = false;
    lastTop = scroller.scrollTop;
    button.hidden = following;
  });
  new ResizeObserver(follow).observe(scroller);
  // A reader who opens a card wants to read it, and is no longer at the end.
  scroller.addEventListener("click", (event) => {
    if (event.target instanceof Element && event.target.closest("summary")) following = false;
  });
  scroller.addEventListener("toggle", () => (following = distance() < 8), true);
  afterwards.add(follow);
  const toEnd = () => {
    following = true;
    follow();
  };
  button.addEventListener("click", () => {
    toEnd();
    scroller.focus();
  });
  // The browser's own scrolling is slow, and the end has moved on when it arrives.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "End" || event.shiftKey || (event.target !== scroller && event.target !== document.body)) return;
    event.preventDefault();
    toEnd();
  });
  return toEnd;
}
