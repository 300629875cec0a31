// The search of the site: ranks its sections, and takes a line of a log for the message in it.
//
// `sections` is from sections.js (docs/_ext/search.py); Search, Stemmer and stopwords are Sphinx's.
// Nothing is fetched, so it works from a file, too.
"use strict";
{
  const SHOWN = 25; // results
  const stemmer = new Stemmer();
  const stems = new Map();
  // Short and long for the same thing: people write the one, and a section has the other.
  const SAME = {
    asynchronous: "async",
    asynchronously: "async",
    auth: "authentication",
    authenticate: "authentication",
    authenticated: "authentication",
    config: "configuration",
    conn: "connection",
    conns: "connections",
    db: "database",
    drf: "rest",
    env: "environment",
    k8s: "kubernetes",
    pg: "postgresql",
    postgres: "postgresql",
    prod: "production",
    psycopg3: "psycopg",
    sqlite3: "sqlite",
    synchronous: "sync",
    synchronously: "sync",
    txn: "transaction",
    unittest: "test",
    unittests: "tests",
    ws: "websocket",
  };
  const stem = (word) => {
    const whole = Object.hasOwn(SAME, word) ? SAME[word] : word;
    if (!stems.has(word)) stems.set(word, stemmer.stemWord(whole));
    return stems.get(word);
  };
  // Quotes, punctuation and case go, and numbers that are others each time; codes of errors stay.
  const CODES = "1020 1040 1205 1213 1317 1969 2002 2006 2013 2014 503".split(" ");
  const split = (text) =>
    text
      .normalize("NFKC")
      .split(/[^\p{L}\p{N}]+/u)
      .filter((word) => word && (!/^\d+$/.test(word) || CODES.includes(word)));
  const terms = (text) => split(text).map((word) => stem(word.toLowerCase()));

  // The terms that stand close behind each other; in between come names and numbers.
  const pairs = (list) =>
    new Set(
      list.flatMap((term, at) => list.slice(at + 1, at + 4).map((next) => `${term} ${next}`)),
    );

  const titles = new Map();
  for (const each of sections) if (each.is_page) titles.set(each.page, each.title);
  const seen = new Map(); // a term: in how many sections it is
  for (const each of sections) {
    each.phrases = [each.title, ...each.names, ...each.prints].map((text, at) => ({
      terms: terms(text),
      pairs: pairs(terms(text)),
      isMessage: at > each.names.length,
    }));
    each.counts = new Map();
    const count = (list, weight) =>
      list.forEach((term) => each.counts.set(term, (each.counts.get(term) || 0) + weight));
    count(new Set(each.phrases[0].terms), 4);
    count(new Set(each.phrases.slice(1).flatMap((phrase) => phrase.terms)), 2);
    if (!each.is_page) count(new Set(terms(titles.get(each.page) || "")), 1);
    const text = terms(each.text);
    count(text, 1);
    each.length = text.length;
    for (const term of each.counts.keys()) seen.set(term, (seen.get(term) || 0) + 1);
  }
  const usual = sections.reduce((sum, each) => sum + each.length, 0) / sections.length;
  const plain = new Set([...stopwords].flatMap(terms));
  const weigh = (term) => {
    if (!seen.has(term)) return 0;
    return Math.log(1 + sections.length / seen.get(term)) * (plain.has(term) ? 0.2 : 1);
  };
  const weight = (list) => list.reduce((sum, term) => sum + weigh(term), 0);

  // A word that no section has stands for those that begin so, or is two written as one.
  const known = (word) => {
    const term = stem(word.toLowerCase());
    if (seen.has(term) || term.length < 4) return [term];
    const parts = word.split(/(?<=\p{Ll})(?=\p{Lu})/u);
    if (parts.length > 1) return parts.flatMap(known);
    const near = [...seen.keys()].filter((each) => isNear(each, term));
    near.sort((one, other) => seen.get(other) - seen.get(one));
    return near.slice(0, 1);
  };
  const isNear = (one, other) => {
    if (one.length < 4 || Math.abs(one.length - other.length) > 3) return false;
    if (one.startsWith(other) || other.startsWith(one)) return true;
    // One letter is wrong, missing, too much, or two are in the wrong order.
    let from = 0;
    while (from < one.length && one[from] === other[from]) from++;
    const [left, right] = [one.slice(from), other.slice(from)];
    return (
      from > 0 &&
      (left.slice(1) === right.slice(1) ||
        left.slice(1) === right ||
        left === right.slice(1) ||
        (left[0] === right[1] && left[1] === right[0] && left.slice(2) === right.slice(2)))
    );
  };

  // How much of a phrase is in a text, word behind word.
  const share = (phrase, within) => {
    let [has, all] = [0, 0];
    for (let at = 1; at < phrase.length; at++) {
      const heavy = weigh(phrase[at - 1]) + weigh(phrase[at]) + 0.1;
      all += heavy;
      if (within.has(`${phrase[at - 1]} ${phrase[at]}`)) has += heavy;
    }
    return all ? has / all : 0;
  };
  const rank = (query) => {
    const asked = split(query).flatMap(known);
    // The code at the end of an error of the bridge is the anchor of its entry.
    const codes = new Set([...query.matchAll(/\[([a-z-]+)\]/g)].map((match) => match[1]));
    const [set, around, whole] = [new Set(asked), pairs(asked), weight([...new Set(asked)])];
    const score = (each) => {
      let [sum, likeness, message] = [0, 0, 0];
      for (const term of set) {
        const times = each.counts.get(term) || 0;
        const long = 0.4 + (0.6 * each.length) / usual;
        sum += (weigh(term) * times * 2.2) / (times + 1.2 * long);
      }
      for (const phrase of each.phrases) {
        const own = new Set(phrase.terms);
        const heavy = weight([...own]);
        const both = weight([...own].filter((term) => set.has(term)));
        if (!both) continue;
        const back = share(asked, phrase.pairs);
        likeness = Math.max(likeness, (2 * both) / (heavy + whole));
        if (phrase.isMessage && set.size > 2) likeness = Math.max(likeness, back ** 2);
        if (!phrase.isMessage) continue;
        const part = phrase.terms.length > 1 ? share(phrase.terms, around) : both / heavy;
        if (part >= 0.7) message = Math.max(message, part * part * heavy);
      }
      const first = each.weight * (each.is_page ? 0.9 : 1);
      const code = each.prints.length && codes.has(each.anchor) ? 1000 : 0;
      return (sum + 2 * whole * likeness ** 2) * first + 10 * message + code;
    };
    return sections
      .map((section) => ({ section, score: score(section) }))
      .filter((each) => each.score > 0)
      .sort((one, other) => other.score - one.score);
  };
  // The page of the results; Sphinx's script calls it when the page is there.
  const add = (to, name, text, kind) => {
    const element = to.appendChild(document.createElement(name));
    element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  Search.rank = rank;
  Search.query = (query) => {
    const root = document.documentElement.dataset.content_root;
    const found = rank(query).slice(0, SHOWN);
    for (const { section } of found) {
      const item = add(Search.output, "li", "");
      const link = add(item, "a", section.title);
      link.href = `${root}${section.page}.html#${section.anchor}`;
      if (!section.is_page) add(item, "span", titles.get(section.page), "search-page");
      const [text] = section.text.match(/^.{0,180}(?=\s|$)/u) || [""];
      add(item, "p", text === section.text ? text : `${text} …`, "context");
    }
    Search.stopPulse();
    Search.title.innerText = found.length ? "Found" : "Nothing found";
    Search.status.innerText = found.length ? "" : "Try fewer words, or those of the message.";
  };
  Search.setIndex({});
}
