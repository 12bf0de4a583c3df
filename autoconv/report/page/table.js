/* The table of all problems that pass. Of any number of rows only those in sight are elements. */

const COLUMNS = [
  ["network", "Network", false], ["what", "Convolution", false], ["dtype", "dtype", false], ["gflop", "Work", true], ["native", "native", true],
  ["best", "chosen", true], ["winner", "Winner", false], ["speed", "Speed-up", true], ["from", "Source", false],
];

const YOURS = "yours"; // the order in which it opens where there are rows of the user's own and others
const LEAST_NAME = 9; // letters of a network's name
const PRINTED = ["what", "network", "dtype", "native", "best", "winner", "speed"];

/** The table; `draw` shows what passes the filter, `refocus` a row that had the focus, `printed` makes a list of its first
 * rows for paper, and `open` is told of the row that is chosen. */
function makeTable({ data, filter, open }) {
  const p = data.problems;
  const place = byId("table");
  const sheet = make("div");
  const view = make("div", { class: "rows", tabindex: "-1" }, sheet);
  const sorting = { by: data.hasOthers ? YOURS : "speed", down: true };
  let order = filter.rows;

  const namesOf = (i) => data.networkSets[p.networks[i]].map(([name]) => name);
  /** The network that one filters by, else the user's own, else any; and how many others there are. */
  const networkText = (i, fit = (name) => name) => {
    const names = namesOf(i);
    const first = names.find((name) => name === filter.state.network) ?? names.find(data.isOwn) ?? names[0];
    const more = names.length > 1 ? ` +${names.length - 1}` : "";
    return fit(first, more) + more;
  };
  const cells = {
    network: (i) => networkText(i),
    what: (i) => labelOf(data, i) + (data.kinds[p.kind[i]] === "forward" ? "" : `, ${words(data.kinds[p.kind[i]])}`),
    dtype: (i) => data.dtypes[p.dtype[i]],
    gflop: (i) => workText(p.gflop[i]),
    native: (i) => timeText(p.native_us[i]) || "–",
    best: (i) => timeText(p.best_us[i]) || "–",
    winner: (i) => data.names[p.candidate[i]] || "undecided",
    speed: (i) => times(p.speedup[i]) || "–",
    from: (i) => data.sources[p.source[i]].kind,
  };
  const keys = { // numbers to sort by; of texts their place in the alphabet
    [YOURS]: (i) => (data.isMine(i) ? 1e9 : 0) + (known(p.speedup[i]) ? p.speedup[i] : -1), // past any speed-up
    network: placesOf(data.networkSets.map((set) => (set.find(([name]) => data.isOwn(name)) ?? set[0])[0]), p.networks), what: (i) => p.n[i] * p.d[i] * p.h[i] * p.w[i] * p.c_in[i],
    dtype: placesOf(data.dtypes, p.dtype), gflop: (i) => p.gflop[i], native: (i) => p.native_us[i], best: (i) => p.best_us[i],
    winner: placesOf(data.names, p.candidate), speed: (i) => p.speedup[i], from: placesOf(data.sources.map((s) => s.kind), p.source),
  };

  function placesOf(texts, column) {
    const sorted = [...new Set(texts)].sort((a, b) => a.localeCompare(b));
    const places = new Map(sorted.map((text, at) => [text, at]));
    const numbers = texts.map((text) => places.get(text));
    return (i) => numbers[column[i]];
  }

  function sort() {
    const values = new Float64Array(data.count);
    for (const i of filter.rows) { const value = keys[sorting.by](i); values[i] = known(value) ? value : sorting.down ? -Infinity : Infinity; }
    const sign = sorting.down ? -1 : 1;
    order = filter.rows.slice().sort((a, b) => sign * (values[a] - values[b]) || a - b);
  }

  function sortBy(name, down) {
    Object.assign(sorting, { by: name, down });
    table.draw();
  }

  const heads = make("div", { class: "row heads", role: "row" }, ...COLUMNS.map(([name, title, isNumber]) => make("div", { class: isNumber ? "n" : "", role: "columnheader", "data-name": name },
    make("button", { type: "button", onclick: () => sortBy(name, sorting.by === name ? !sorting.down : isNumber) }, title))));
  // Where there is no room for headings:
  const orders = make("select", { "aria-label": "Sort by", onchange: () => sortBy(orders.value, orders.value === YOURS || COLUMNS.some(([name, , isNumber]) => name === orders.value && isNumber)) },
    ...(data.hasOthers ? [make("option", { value: YOURS }, "yours first")] : []), ...COLUMNS.map(([name, title]) => make("option", { value: name }, title)));
  const direction = make("button", { type: "button", onclick: () => sortBy(sorting.by, !sorting.down) });
  byId("sort").append(make("label", {}, "sort by", orders), direction);
  place.append(heads, view);

  const pen = document.createElement("canvas").getContext("2d"); // it knows how wide a text is

  /** A network's name, as much of it as a row has room for beside `more`: in its column, or behind its dtype. */
  function fitted(i, name, more) {
    const [room, before] = heads.clientWidth ? [heads.firstChild.clientWidth, ""] : [view.clientWidth - 26, `${cells.dtype(i)} · `];
    const isWide = (text) => pen.measureText(before + text + more).width > room;
    let most = name.length;
    while (most > LEAST_NAME && isWide(shortened(name, most))) most--;
    return shortened(name, most);
  }

  function rowOf(at, height) {
    const i = order[at];
    const row = make("div", { class: "row", role: "row", tabindex: "0", "data-row": i, "aria-rowindex": at + 1 }, ...COLUMNS.map(([name, , isNumber]) => {
      const text = name === "network" ? networkText(i, (full, more) => fitted(i, full, more)) : cells[name](i);
      const title = name === "network" ? namesOf(i).join("\n") : text;
      const cell = make("div", { class: `${name}${isNumber ? " n" : ""}${name === "speed" && p.speedup[i] > 1 ? " gain" : ""}`, role: "gridcell", title });
      if (name === "network") cell.dataset.dtype = cells.dtype(i);
      if (name === "winner") cell.append(glyph(data.algorithms[p.algorithm[i]]), " ");
      cell.append(text);
      return cell;
    }));
    row.style.transform = `translateY(${at * height}px)`;
    return row;
  }

  const none = make("p", { class: "muted none", hidden: true }, "Nothing passes the filter.");
  view.after(none);

  const heightOfRow = () => (innerWidth <= 860 ? 78 : 34);

  function show() {
    const height = heightOfRow();
    view.style.height = `min(620px, 70vh, ${order.length * height}px)`;
    none.hidden = order.length > 0;
    const first = Math.max(0, Math.floor(view.scrollTop / height) - 6);
    const last = Math.min(order.length, first + Math.ceil(view.clientHeight / height) + 12);
    sheet.style.height = `${order.length * height}px`;
    const { fontSize, fontFamily } = getComputedStyle(view);
    pen.font = `${fontSize} ${fontFamily}`;
    const rows = [];
    for (let at = first; at < last; at++) rows.push(rowOf(at, height));
    sheet.replaceChildren(...rows);
  }

  let asked = false;
  view.addEventListener("scroll", () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; show(); });
  });
  addEventListener("resize", show);
  const chosen = (event) => event.target.closest("[data-row]")?.dataset.row;
  sheet.addEventListener("click", (event) => { const row = chosen(event); if (row !== undefined) open(Number(row)); });
  sheet.addEventListener("keydown", (event) => {
    const row = chosen(event);
    if (row !== undefined && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); open(Number(row)); }
  });

  const table = {
    draw() {
      sort();
      for (const head of heads.children) {
        if (head.dataset.name === sorting.by) head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      }
      orders.value = sorting.by;
      direction.textContent = sorting.down ? "↓" : "↑";
      direction.setAttribute("aria-label", sorting.down ? "Descending" : "Ascending");
      view.scrollTop = 0;
      show();
    },
    refocus(i) {
      const at = order.indexOf(i);
      if (at < 0) { view.focus(); return; }
      const height = heightOfRow();
      if (view.scrollTop > at * height || view.scrollTop + view.clientHeight < (at + 1) * height) view.scrollTop = (at - 3) * height;
      show();
      sheet.querySelector(`[data-row="${i}"]`).focus();
    },
    printed(most) {
      const columns = PRINTED.map((name) => COLUMNS.find(([each]) => each === name));
      const style = (isNumber) => ({ class: isNumber ? "n" : undefined });
      const some = order.length > most ? `The first ${most} of ${many(order.length, "problem")}` : many(order.length, "problem");
      return [
        make("p", { class: "muted" }, `${some}${filter.told ? `; only ${filter.told}` : ""}.`),
        make("table", {}, make("thead", {}, make("tr", {}, ...columns.map(([, title, isNumber]) => make("th", style(isNumber), title)))),
          make("tbody", {}, ...Array.from(order.slice(0, most), (i) => make("tr", {}, ...columns.map(([name, , isNumber]) => make("td", style(isNumber), cells[name](i))))))),
      ];
    },
  };
  return table;
}
