// How often a picture is drawn while things go on: soon after they changed, at a frame of the screen, and then not
// again until it has rested. In a tab that nobody sees there are no frames, and nothing is drawn.

/**
 * Have `draw` called in time. `soon(wait)`: in so many milliseconds, unless it is to be sooner anyway; without `wait`,
 * once it has rested. `rest(ms)`: for so long from now. `close()`: never again.
 */
export function paced(draw) {
  let timer = null;
  let frame = null;
  let due = Infinity;
  let rested = 0;
  let closed = false;
  const stop = () => {
    clearTimeout(timer);
    cancelAnimationFrame(frame);
  };
  return {
    soon(wait = Math.max(0, rested - performance.now())) {
      const wanted = performance.now() + wait;
      if (closed || wanted >= due) return;
      stop();
      due = wanted;
      timer = setTimeout(() => {
        frame = requestAnimationFrame(() => {
          due = Infinity;
          draw();
        });
      }, wait);
    },
    rest(ms) {
      rested = performance.now() + ms;
    },
    close() {
      closed = true;
      stop();
    },
  };
}
