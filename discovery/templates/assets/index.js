"use strict";
// The list of latents: searched, filtered and sorted here. Text of models and corpora goes in as text, never as markup.
(() => {
  const PAGE = 100;
  const $ = (id) => document.getElementById(id);
  const rows = window.LATENTS.map((latent, rank) => ({
    ...latent,
    rank,
    words: [latent.latent, latent.name, latent.title, latent.about, latent.tokens, latent.more].join(" ").toLowerCase(),
  }));
  let shown = PAGE;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const wanted = () => {
    const query = $("query").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const kind = document.querySelector("input[name=kind]:checked").value;
    const order = $("order").value;
    const found = rows.filter(
      (row) =>
        (kind !== "named" || row.name) && (kind !== "explained" || row.title) && query.every((word) => row.words.includes(word)),
    );
    // What is named so comes before what merely has the words somewhere.
    const weight = (row) => query.filter((word) => `${row.latent} ${row.name} ${row.title}`.toLowerCase().includes(word)).length;
    const by = {
      "": (a, b) => weight(b) - weight(a) || a.rank - b.rank,
      latent: (a, b) => a.latent - b.latent,
      density: (a, b) => b.density - a.density,
      max: (a, b) => b.max - a.max,
      score: (a, b) => (b.score ?? -1) - (a.score ?? -1),
    }[order];
    return { query, found: found.sort(by) };
  };

  const example = (row, query) => {
    const cell = element("td", "words window");
    // Where the words stand only in another example, that one is shown, without colours.
    const first = row.example.map((run) => run[0]).join("");
    const hidden = query.length && !query.every((word) => first.toLowerCase().includes(word));
    const other = hidden && row.more.split("\n").find((text) => query.some((word) => text.toLowerCase().includes(word)));
    if (other) {
      marked(cell, other, query);
      return cell;
    }
    for (const [text, level, isFocus] of row.example) {
      const span = element("span", `t${level}${isFocus ? " focus" : ""}`);
      marked(span, text, query);
      cell.append(span);
    }
    return cell;
  };

  const marked = (parent, text, query) => {
    let rest = text;
    while (rest) {
      const low = rest.toLowerCase();
      const at = query.map((word) => [low.indexOf(word), word]).filter(([index]) => index >= 0).sort((a, b) => a[0] - b[0])[0];
      // Lower case can have another length; then nothing is marked.
      if (!at || low.length !== rest.length) break;
      parent.append(rest.slice(0, at[0]), element("mark", "", rest.slice(at[0], at[0] + at[1].length)));
      rest = rest.slice(at[0] + at[1].length);
    }
    parent.append(rest);
  };

  const tableRow = (row, query) => {
    const line = element("tr");
    const link = element("a", "", String(row.latent));
    link.href = `latents/${row.latent}.html`;
    const first = element("td", "index");
    first.append(link);
    const name = element("td");
    if (row.name) name.append(element("b", "", row.name), " ");
    if (row.title) name.append(row.title);
    line.append(
      first,
      name,
      element("td", "num", percent(row.density)),
      element("td", "num", row.max.toFixed(2)),
      element("td", "num", row.score === null ? "" : row.score.toFixed(2)),
      example(row, query),
    );
    return line;
  };

  const percent = (share) => `${(100 * share).toLocaleString("en", { maximumSignificantDigits: 2 })} %`;

  const draw = () => {
    const { query, found } = wanted();
    $("rows").replaceChildren(...found.slice(0, shown).map((row) => tableRow(row, query)));
    $("count").textContent = `${found.length} of ${rows.length} latents`;
    $("more").hidden = found.length <= shown;
    const hash = query.length ? `#q=${encodeURIComponent($("query").value.trim())}` : "";
    if (hash !== location.hash) history.replaceState(null, "", location.pathname + location.search + hash);
  };

  const asked = () => {
    const hash = new URLSearchParams(location.hash.slice(1)).get("q");
    return hash ?? new URLSearchParams(location.search).get("q") ?? "";
  };

  $("query").value = asked();
  $("query").addEventListener("input", () => { shown = PAGE; draw(); });
  $("order").addEventListener("change", draw);
  document.querySelectorAll("input[name=kind]").forEach((input) => input.addEventListener("change", draw));
  $("search").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", () => { shown += PAGE; draw(); });
  window.addEventListener("hashchange", () => { $("query").value = asked(); draw(); });
  draw();
})();
