/* Long programs, folded: the lines that set a program up and start it are hidden until the bar
   below it is pressed, and so is what the page has shown already. What the text speaks of stays:
   highlighted lines, what has changed, and what comes from the package. The copy button takes all lines, folded or not. Without JavaScript, and
   on paper, all lines are there. */

(() => {
  "use strict";

  // Imports, settings, the start, and functions that play the client of a server.
  const SETS_UP =
    /^(import |from (?!ormbridge|channels)|settings\.configure\(|django\.setup\(|if __name__ == )/;
  const PLAYS_CLIENT = /\.(send_input|receive_output)\(/;
  const LINE = /<(del|ins|span class="hll")>[^\n]*\n<\/(del|ins|span)>|[^\n]*\n/g;

  const text = (html) => {
    const element = document.createElement("pre");
    element.innerHTML = html;
    return element.textContent;
  };

  /* Return the statements of a module, each with the blank lines behind it, as lists of lines. */
  const statements = (lines) => {
    const found = [];
    let decorated = false;
    for (const line of lines) {
      const begins = /^[^\s)\]}]/.test(text(line)) && !decorated;
      if (begins || !found.length) found.push([]);
      found.at(-1).push(line);
      decorated = text(line).startsWith("@");
    }
    return found;
  };

  const folds = (lines) => {
    if (lines.some((line) => /^<(del|ins|span class="hll")>/.test(line))) return false;
    const source = text(lines.join(""));
    return SETS_UP.test(source) || (/^(async )?def (?!main)/.test(source) && PLAYS_CLIENT.test(source));
  };

  const shown = new Set();
  const again = (lines) => {
    const source = text(lines.join("")).trim();
    return source.split("\n").length > 3 && shown.size === shown.add(source).size;
  };

  let number = 0;
  for (const pre of document.querySelectorAll(".example > div > .highlight > pre")) {
    if (!pre.textContent.includes('\nif __name__ == "__main__":')) continue;
    const lines = pre.innerHTML.replace("<span></span>", "").match(LINE) ?? [];
    let hidden = 0;
    let html = "";
    let folding = false;
    for (const each of statements(lines)) {
      const known = again(each);
      const fold = known || folds(each);
      if (fold !== folding) html += fold ? '<span class="gap"></span><span class="folded">' : "</span>";
      folding = fold;
      hidden += fold ? each.length : 0;
      html += each.join("");
    }
    if (hidden < 6) continue;
    pre.innerHTML = `<span></span>${html}${folding ? "</span>" : ""}`;
    pre.id ||= `program-${++number}`;
    const bar = document.createElement("button");
    bar.type = "button";
    bar.className = "unfold";
    bar.textContent = `Show all ${lines.filter((line) => !line.startsWith("<del>")).length} lines`;
    bar.setAttribute("aria-expanded", "false");
    bar.setAttribute("aria-controls", pre.id);
    bar.addEventListener("click", () => {
      const open = pre.toggleAttribute("data-unfolded");
      bar.setAttribute("aria-expanded", String(open));
    });
    pre.closest(".example > div").after(bar);
  }
  // What was above the place that the address names has become shorter.
  if (number && location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
})();
