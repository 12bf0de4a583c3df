/* The table of all problems that pass. Of any number of rows only those in sight are elements. */

const COLUMNS = [
  ["network", "Network", false], ["what", "Convolution", false], ["dtype", "dtype", false], ["gflop", "GFLOP", true], ["native", "native", true],
  ["best", "chosen", true], ["winner", "Winner", false], ["speed", "Speed-up", true], ["from", "Source", false],
];

/** The table; `draw` shows what passes the filter, and `open` is told of the row that is chosen. */
function makeTable({ data, filter, open }) {
  const p = data.problems;
  const place = byId("table");
  const sheet = make("div");
  const view = make("div", { class: "rows", tabindex: "-1" }, sheet);
  const sorting = { by: "speed", down: true };
  let order = filter.rows;

  const networkText = (i) => {
    const set = data.networkSets[p.networks[i]];
    return set.length > 1 ? `${set[0][0]} +${set.length - 1}` : set[0][0];
  };
  const cells = {
    network: networkText,
    what: (i) => labelOf(data, i) + (data.kinds[p.kind[i]] === "forward" ? "" : `, ${words(data.kinds[p.kind[i]])}`),
    dtype: (i) => data.dtypes[p.dtype[i]],
    gflop: (i) => p.gflop[i].toPrecision(3).replace(/e\+?/, "e"),
    native: (i) => timeText(p.native_us[i]) || "–",
    best: (i) => timeText(p.best_us[i]) || "–",
    winner: (i) => data.names[p.candidate[i]] || "undecided",
    speed: (i) => times(p.speedup[i]) || "–",
    from: (i) => data.sources[p.source[i]].kind,
  };
  const keys = { // numbers to sort by; of texts their place in the alphabet
    network: placesOf(data.networkSets.map((set) => set[0][0]), p.networks), what: (i) => p.n[i] * p.d[i] * p.h[i] * p.w[i] * p.c_in[i],
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

  const heads = make("div", { class: "row heads", role: "row" }, ...COLUMNS.map(([name, title, isNumber]) => make("div", { class: isNumber ? "n" : "", role: "columnheader", "data-name": name },
    make("button", { type: "button", onclick: () => {
      sorting.down = sorting.by === name ? !sorting.down : isNumber;
      sorting.by = name;
      table.draw();
    } }, title))));
  place.append(heads, view);

  function rowOf(at, height) {
    const i = order[at];
    const row = make("div", { class: "row", role: "row", tabindex: "0", "data-row": i, "aria-rowindex": at + 1 }, ...COLUMNS.map(([name, , isNumber]) => {
      const text = cells[name](i);
      const cell = make("div", { class: `${name}${isNumber ? " n" : ""}${name === "speed" && p.speedup[i] > 1 ? " gain" : ""}`, role: "gridcell", title: text });
      if (name === "winner") cell.append(glyph(data.algorithms[p.algorithm[i]]), " ");
      cell.append(text);
      return cell;
    }));
    row.style.transform = `translateY(${at * height}px)`;
    return row;
  }

  function show() {
    const height = innerWidth <= 860 ? 58 : 34;
    const first = Math.max(0, Math.floor(view.scrollTop / height) - 6);
    const last = Math.min(order.length, first + Math.ceil(view.clientHeight / height) + 12);
    sheet.style.height = `${order.length * height}px`;
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
      view.scrollTop = 0;
      show();
    },
  };
  return table;
}
