// The form of the `calculator` directive: says at once whether the connections fit.
// Arithmetic and words are those of verdict() in docs/_ext/calculator.py.

function verdict({ processes, threads, aliases, limit, reserved, others }) {
  const needed = processes * threads * aliases;
  const room = Math.max(limit - reserved - others, 0);
  if (needed <= room) {
    return `fits: at most ${needed} connections, and there is room for ${room}`;
  }
  const most = Math.floor(room / (processes * aliases));
  const fewer = most ? `lower ASGI_THREADS to ${most}` : "run fewer processes";
  const limitThatFits = needed + reserved + others;
  return (
    `too many: up to ${needed} connections, and there is room for ${room}; ${fewer}, raise ` +
    `max_connections to ${limitThatFits}, or put PgBouncer in between`
  );
}

for (const form of document.querySelectorAll(".calculator-form")) {
  const output = form.querySelector("output");
  const update = () => {
    const wrong = form.querySelector("input:invalid");
    const figures = Object.fromEntries(new FormData(form));
    for (const name in figures) figures[name] = Number(figures[name]);
    output.value = wrong
      ? `“${wrong.labels[0].textContent}” takes a whole number from ${wrong.min} to ${wrong.max}`
      : verdict(figures);
    form.dataset.verdict = wrong ? "wrong" : output.value.startsWith("fits") ? "fits" : "too-many";
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
}
