// When the page draws: what changes between two frames of the screen is drawn once. In a tab that nobody sees there are
// no frames, so there it is done a few times a second, and a reader who comes back finds the answer as it stands.

const HIDDEN_MS = 250;

const due = new Set();
let asked = false;

/** Have `draw` called once, soon; asking again before it was is one call. */
export function paint(draw) {
  due.add(draw);
  if (asked) return;
  asked = true;
  if (document.hidden) setTimeout(run, HIDDEN_MS);
  else requestAnimationFrame(run);
}

// A frame that was asked for is not given to a tab that is hidden meanwhile.
document.addEventListener("visibilitychange", () => asked && document.hidden && setTimeout(run, HIDDEN_MS));

function run() {
  const drawing = [...due];
  due.clear();
  asked = false;
  for (const draw of drawing) {
    try {
      draw();
    } catch (error) {
      reportError(error); // the others are drawn all the same
    }
  }
}
