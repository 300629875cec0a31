/* Quiet marks: opens the tests of a paragraph, or of a row, behind it. What it shows is in a script
   beside the page of `proven` that the mark leads to, and is loaded with the first mark. Without
   JavaScript, and where the script does not load, a mark is a link to that page.

   A switch makes the marks stops of the tab key and has them read. It is remembered. */

(() => {
  "use strict";

  const marks = [...document.querySelectorAll("a.claim[href]")];
  if (!marks.length) return;
  const KEY = "show-the-tests";
  let loading = null;

  const load = (address) =>
    (loading ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = address.replace(/\.html#.*$/, ".js");
      script.onload = () => resolve(window.proofs);
      script.onerror = reject;
      document.head.append(script);
    }));

  const fill = (mark, { marks, tests, versions }) => {
    const panel = document.createElement("div");
    panel.className = "proofs";
    panel.id = `${mark.id}-tests`;
    panel.setAttribute("role", "group");
    panel.setAttribute("aria-label", "Tests");
    // A cell of a table is no sentence: what stands behind a row are its tests, each once.
    const said = marks[mark.id] ?? {};
    const shown = (names) => [...new Set(names)].map((name) => tests[name] ?? "").join("");
    panel.innerHTML = mark.closest("tr")
      ? shown(Object.values(said).flat())
      : Object.entries(said)
          .map(([sentence, names]) => `<p>${sentence}</p>${shown(names)}`)
          .join("");
    panel.innerHTML += `<details><summary>Versions of the run</summary>${versions}</details>`;
    const opened = panel.querySelectorAll("details");
    if (opened.length === 2) opened[0].open = true; // the only test
    for (const each of panel.querySelectorAll("pre, .table-wrapper")) each.tabIndex = 0;
    const all = document.createElement("a");
    all.href = mark.href;
    all.textContent = "All tests of this page";
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "Close";
    close.addEventListener("click", () => toggle(mark));
    const foot = document.createElement("p");
    foot.append(all, " ", close);
    panel.append(foot);
    panel.addEventListener("keydown", (event) => event.key === "Escape" && toggle(mark));
    return panel;
  };

  const toggle = async (mark) => {
    const open = document.getElementById(`${mark.id}-tests`);
    if (open) {
      (open.closest("tr.proofs-row") ?? open).remove();
      mark.setAttribute("aria-expanded", "false");
      mark.focus();
      return;
    }
    let proofs;
    try {
      proofs = await load(mark.href);
    } catch {
      location.href = mark.href;
      return;
    }
    if (document.getElementById(`${mark.id}-tests`)) return; // pressed twice while it loaded
    const panel = fill(mark, proofs);
    const row = mark.closest("tr");
    if (row) {
      const place = document.createElement("tr");
      place.className = "proofs-row";
      const cell = place.insertCell();
      cell.colSpan = row.cells.length;
      cell.append(panel);
      // A row of the head stays in the head: what it opens is the first of the body.
      if (row.parentElement.tagName === "THEAD") row.closest("table").tBodies[0].prepend(place);
      else row.after(place);
    } else mark.parentElement.after(panel);
    mark.setAttribute("aria-expanded", "true");
  };

  const show = (on) => {
    document.documentElement.toggleAttribute("data-tests", on);
    for (const mark of marks) {
      mark.tabIndex = on ? 0 : -1;
      if (on) mark.removeAttribute("aria-hidden");
      else mark.setAttribute("aria-hidden", "true");
    }
    button.setAttribute("aria-pressed", String(on));
  };

  const button = document.createElement("button");
  button.type = "button";
  button.className = "show-the-tests";
  button.textContent = "Show the tests";
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    show(on);
    try {
      localStorage.setItem(KEY, on ? "on" : "");
    } catch {} // a browser that keeps nothing: the switch holds for this page
  });
  (document.querySelector(".content-icon-container") ?? document.body).prepend(button);

  for (const mark of marks) {
    mark.setAttribute("role", "button");
    mark.setAttribute("aria-expanded", "false");
    mark.setAttribute("aria-label", `${mark.title} of what stands before`);
    mark.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab, as any link
      event.preventDefault();
      toggle(mark);
    });
    mark.addEventListener("keydown", (event) => {
      if (event.key === " ") {
        event.preventDefault();
        toggle(mark);
      }
    });
  }
  let kept = "";
  try {
    kept = localStorage.getItem(KEY) ?? "";
  } catch {}
  show(kept === "on");
})();
