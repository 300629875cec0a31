/* The side bar begins where the open page is listed, and not at its top: half of the list is below
   the edge of a laptop's screen. */

(() => {
  "use strict";

  const list = document.querySelector(".sidebar-scroll");
  const here = list?.querySelector(".current-page");
  if (!here) return;
  const [frame, entry] = [list.getBoundingClientRect(), here.getBoundingClientRect()];
  const below = entry.bottom - frame.bottom;
  if (below > 0) list.scrollTo({ top: below + frame.height / 2, behavior: "instant" });
})();
