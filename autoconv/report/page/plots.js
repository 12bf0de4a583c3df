/* Plots of what was measured. Each is a figure with `draw`, which shows the problems that pass the filter. */

const MOST_SVG = 4000; // points past which WebGL draws them, where there is any
const MOST_GL = 15000; // points past which some are left out, evenly, and that is said
const TICKS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000];

/** Whether WebGL draws here: without a graphics driver it may not. */
const hasGl = (() => {
  const context = document.createElement("canvas").getContext("webgl");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return context !== null;
})();

/** A figure: title, a line that `draw` may fill, controls, and a place for the plot. */
function makeFigure(id, title, { wide = false, controls = [] } = {}) {
  const said = make("p");
  const place = make("div", { class: "plot", id: `${id}-plot` });
  const element = make("figure", { class: wide ? "card wide" : "card", id },
    make("figcaption", {}, make("h2", {}, title), said),
    ...(controls.length ? [make("div", { class: "controls" }, ...controls)] : []), place);
  return { id, element, place, say: (text) => { said.textContent = text; } };
}

/** A select with a label; `changed` is told of every choice. */
function makeChoice(title, options, changed) {
  const select = make("select", { onchange: changed });
  const choice = {
    element: make("label", {}, title, select),
    get value() { return select.value; },
    /** Offer these, the first by default; what was chosen stays if it is among them. */
    offer(values) {
      const before = select.value;
      select.replaceChildren(...values.map(([value, text]) => make("option", { value }, text)));
      if (values.some(([value]) => value === before)) select.value = before;
    },
  };
  choice.offer(options);
  return choice;
}

/** A layout in the page's colours. */
function layoutOf(changes) {
  const axis = { gridcolor: colour("grid"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true, fixedrange: false, title: { standoff: 12 } };
  const { xaxis = {}, yaxis = {}, ...rest } = changes;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: "zoom",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    margin: { l: 54, r: 18, t: 12, b: 46 }, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false, doubleClick: "reset" };

/** A logarithmic axis with ticks that people read. */
function logAxis(title, tick = (value) => String(value), values = TICKS, thin = false) {
  // Every second one where there is little room; one is among them.
  const one = values.indexOf(1);
  const shown = thin && innerWidth < 620 ? values.filter((_, at) => (at - one) % 2 === 0) : values;
  return { type: "log", title: { text: title, standoff: 12 }, tickvals: shown, ticktext: shown.map(tick), tickangle: 0 };
}
const ratioTick = (value) => `${value}×`;

/** Draw a plot, and bind what hovering tells and clicking does, both given the point; or say why there is none. */
function draw(figure, traces, layout, { tell, open, none = "Nothing passes the filter." } = {}) {
  const { place } = figure;
  if (!traces.some((trace) => trace.x.length)) {
    Plotly.purge(place);
    place.replaceChildren(make("div", { class: "none" }, none));
    place.dataset.drawn = "none";
    return;
  }
  if (place.dataset.drawn !== "plot") place.replaceChildren();
  Plotly.react(place, traces.map((trace) => ({ hoverinfo: "none", ...trace })), layoutOf(layout), CONFIG);
  place.dataset.drawn = "plot";
  place.removeAllListeners?.("plotly_hover");
  place.removeAllListeners?.("plotly_unhover");
  place.removeAllListeners?.("plotly_click");
  place.on("plotly_hover", ({ points, event }) => tell && showTip(tell(points[0]), event));
  place.on("plotly_unhover", hideTip);
  place.on("plotly_click", ({ points }) => { hideTip(); open?.(points[0]); });
}

/** Show a text beside the pointer. */
function showTip(text, event) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 8))}px`;
}
function hideTip() { byId("tip").hidden = true; }

/** Points of many algorithms, a trace each. Of too many numbers some are left out, evenly; `at` makes [x, y] of one. */
function scatter(data, numbers, algorithm, at, marker = {}) {
  const most = hasGl ? MOST_GL : MOST_SVG;
  const step = Math.ceil(numbers.length / most) || 1;
  const type = hasGl && numbers.length > MOST_SVG ? "scattergl" : "scatter";
  const traces = data.algorithms.map((name) => ({ name, x: [], y: [], customdata: [] }));
  for (let k = 0; k < numbers.length; k += step) {
    const trace = traces[algorithm[numbers[k]]];
    const [x, y] = at(numbers[k]);
    trace.x.push(x); trace.y.push(y); trace.customdata.push(numbers[k]);
  }
  const shown = traces.filter((trace) => trace.x.length).map(({ name, ...trace }) => ({
    ...trace, type, name: plain(name), mode: "markers",
    marker: { color: lookOf(name)[0], symbol: lookOf(name)[1], size: 7, opacity: 0.72, ...marker },
  }));
  // What is many lies beneath what is few.
  shown.sort((a, b) => b.x.length - a.x.length);
  return { traces: shown, left: step > 1 ? `; ${whole(Math.ceil(numbers.length / step))} of them are drawn, a filter shows more` : "" };
}

/** What native takes, and what is chosen, of all calls of a set of problems, network by network. */
function gainsOf(data, rows) {
  const p = data.problems;
  const found = new Map();
  for (const i of rows) {
    for (const [name, count] of data.networkSets[p.networks[i]]) {
      let sum = found.get(name);
      if (!sum) found.set(name, (sum = { name, problems: 0, before: 0, after: 0, most: 1 }));
      sum.problems++;
      if (!known(p.speedup[i])) continue;
      sum.before += count * p.native_us[i];
      sum.after += (count * p.native_us[i]) / p.speedup[i];
      sum.most = Math.max(sum.most, p.speedup[i]);
    }
  }
  return [...found.values()].filter((sum) => sum.after > 0).map((sum) => ({ ...sum, gain: sum.before / sum.after }));
}

/** Bars: how much faster each network is than with native alone. */
function gainsFigure({ data, filter }) {
  const figure = makeFigure("gains", "Gain by network", { wide: true });
  figure.draw = () => {
    const gains = gainsOf(data, filter.rows).sort((a, b) => (a.name === data.others) - (b.name === data.others) || data.isOwn(b.name) - data.isOwn(a.name) || b.gain - a.gain);
    figure.say("Time of all its convolutions with native, over the time with what is chosen, weighted by how often a pass calls each" + (data.own.length ? "; yours first, then those known by their shapes" : "") + ". A bar selects its network.");
    const narrow = innerWidth < 620;
    const short = (name) => { const most = narrow ? 22 : 46; return name.length > most ? `${name.slice(0, most - 1)}…` : name; };
    const height = Math.max(190, 74 + 21 * gains.length);
    figure.place.style.height = `${height}px`;
    const most = Math.max(1.1, ...gains.map((sum) => sum.gain));
    draw(figure, [{
      type: "bar", orientation: "h", base: 1, x: gains.map((sum) => sum.gain - 1), y: gains.map((_, k) => k),
      marker: { color: gains.map((sum) => (sum.name === data.others ? colour("muted") : colour("accent"))) },
      text: gains.map((sum) => times(sum.gain)), textposition: "outside", cliponaxis: false, width: 0.72,
    }], {
      height, margin: { l: 20, r: 46, t: 6, b: 44 },
      xaxis: { title: { text: "times as fast as native", standoff: 8 }, range: [1 - (most - 1) * 0.01, most + (most - 1) * 0.06], ticksuffix: "×", nticks: narrow ? 5 : 10 },
      yaxis: { autorange: "reversed", tickvals: gains.map((_, k) => k), ticktext: gains.map((sum) => `${plain(short(sum.name))}${data.isOwn(sum.name) ? " (yours)" : ""}  `), showgrid: false, zeroline: false, title: {}, tickfont: { size: narrow ? 11 : 12 } },
    }, {
      tell: (point) => { const sum = gains[point.pointNumber]; return `${sum.name}\n${whole(sum.problems)} problems, ${times(sum.gain)} time-weighted, ${times(sum.most)} at most\n${timeText(sum.before)} with native, ${timeText(sum.after)} as chosen`; },
      open: (point) => filter.set({ network: gains[point.pointNumber].name }),
    });
  };
  return figure;
}

/** A line about a problem, for hovering. */
function toldOf(data, i) {
  const p = data.problems;
  const gain = known(p.speedup[i]) ? `${times(p.speedup[i])}, ${timeText(p.native_us[i])} to ${timeText(p.best_us[i])}` : timeText(p.best_us[i]);
  return `${labelOf(data, i)}\n${data.dtypes[p.dtype[i]]}, ${words(data.kinds[p.kind[i]])}\n${data.names[p.candidate[i]] || "undecided"}: ${gain}`;
}

/** A number between -1 and 1 that a row always has: what lies on one another is moved apart by it. */
const shift = (i, salt) => { const x = Math.sin(i * 12.9898 + salt * 78.233) * 43758.5453; return 2 * (x - Math.floor(x)) - 1; };

/** Points: which algorithm wins at which size. */
function mapFigure({ data, filter, open, redraw }) {
  const again = () => redraw(figure);
  const kernel = makeChoice("kernel", [], again);
  const dtype = makeChoice("dtype", [], again);
  const figure = makeFigure("map", "Who wins where", { controls: [kernel.element, dtype.element] });
  const p = data.problems;
  const offered = (names, of) => {
    const counts = new Array(names.length).fill(0);
    for (const i of filter.rows) counts[of(i)]++;
    return names.map((name, k) => [name, counts[k]]).filter(([, count]) => count).sort((a, b) => b[1] - a[1]).map(([name, count]) => [name, `${name} (${whole(count)})`]);
  };
  figure.draw = () => {
    kernel.offer([...offered(data.kernels, (i) => data.kernelOf[i])]);
    dtype.offer([...offered(data.dtypes, (i) => p.dtype[i])]);
    const points = [];
    for (const i of filter.rows) {
      if (!p.accurate[i] || data.kernels[data.kernelOf[i]] !== kernel.value || data.dtypes[p.dtype[i]] !== dtype.value) continue;
      points.push(i);
    }
    const { traces, left } = scatter(data, points, p.algorithm, (i) => [p.c_in[i] * 1.05 ** shift(i, 1), p.h[i] * p.w[i] * 1.06 ** shift(i, 2)]);
    figure.say(`${whole(points.length)} problems by the size of a frame and the input's channels${left}. Points on one another are moved apart a little.`);
    draw(figure, traces, {
      xaxis: logAxis("input channels", (value) => String(value), [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096], true),
      yaxis: logAxis("frame, H × W pixels", (value) => (value >= 1e6 ? `${value / 1e6}M` : value >= 1e3 ? `${value / 1e3}k` : String(value)), [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7]),
    }, { tell: (point) => toldOf(data, point.customdata), open: (point) => open(point.customdata) });
  };
  return figure;
}

/** Bars: how many problems gain how much, by who wins. */
function speedupFigure({ data, filter }) {
  const figure = makeFigure("speedups", "How much faster");
  const p = data.problems;
  const bin = 1 / 8; // of a doubling
  figure.draw = () => {
    const counts = new Map();
    let kept = 0;
    let others = 0;
    let top = 1;
    for (const i of filter.rows) {
      if (!known(p.speedup[i])) continue;
      if (p.algorithm[i] === data.native) { kept++; continue; }
      others++;
      const place = Math.floor(Math.log2(p.speedup[i]) / bin);
      const bins = counts.get(p.algorithm[i]) ?? counts.set(p.algorithm[i], new Map()).get(p.algorithm[i]);
      bins.set(place, (bins.get(place) ?? 0) + 1);
      top = Math.max(top, p.speedup[i]);
    }
    figure.say(`${whole(others)} problems where another way than native is chosen; native is kept on ${whole(kept)}${kept + others ? ` (${share(kept / (kept + others))})` : ""}. A bar selects its problems.`);
    const traces = [...counts].sort((a, b) => a[0] - b[0]).map(([algorithm, bins]) => ({
      type: "bar", x: [...bins.keys()].map((place) => (place + 0.5) * bin), y: [...bins.values()], width: bin * 0.92,
      marker: { color: lookOf(data.algorithms[algorithm])[0] }, customdata: [...bins.keys()].map((place) => [algorithm, place]),
    }));
    const ticks = [0.5, 1, 1.5, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256].filter((value) => top < 8 || value !== 6 && value !== 3 && value !== 1.5).filter((value) => value <= top * 1.3);
    draw(figure, traces, {
      barmode: "stack",
      xaxis: { title: { text: "times as fast as native (log scale)", standoff: 12 }, tickvals: ticks.map(Math.log2), ticktext: ticks.map(ratioTick), tickangle: 0 },
      yaxis: { title: { text: "problems", standoff: 12 }, rangemode: "tozero" },
    }, {
      none: kept ? "Native is the fastest on all of them." : undefined,
      tell: ({ customdata: [algorithm, place], y }) => `${data.algorithms[algorithm]}\n${times(2 ** (place * bin))} to ${times(2 ** ((place + 1) * bin))}: ${whole(y)} problems`,
      open: ({ customdata: [algorithm, place] }) => filter.set({ winner: data.algorithms[algorithm], least: (2 ** (place * bin)).toPrecision(4), most: (2 ** ((place + 1) * bin)).toPrecision(4) }),
    });
  };
  return figure;
}

/** A line about a candidate, for hovering. */
function candidateTold(data, c) {
  const t = data.candidates;
  const speed = known(t.speedup[c]) ? `${times(t.speedup[c])} native's speed, ${timeText(t.us[c])}` : words(data.statuses[t.status[c]]);
  return `${data.names[t.candidate[c]]}\n${speed}${known(t.error[c]) ? `, error ${small(t.error[c])}` : ""}\n${labelOf(data, data.problemOf[c])}`;
}

/** Points: every candidate's error by its speed, and the bound. */
function accuracyFigure({ data, filter, open, redraw }) {
  const dtype = makeChoice("dtype", [], () => redraw(figure));
  const figure = makeFigure("accuracy", "Accuracy against speed", { controls: [dtype.element] });
  const p = data.problems;
  const t = data.candidates;
  figure.draw = () => {
    const counts = new Array(data.dtypes.length).fill(0);
    for (const i of filter.rows) counts[p.dtype[i]]++;
    dtype.offer(data.dtypes.map((name, k) => [name, counts[k]]).filter(([, n]) => n).sort((a, b) => b[1] - a[1]).map(([name]) => [name, name]));
    const points = [];
    const untimed = [];
    const bounds = [];
    let slowest = 0.5;
    for (const i of filter.rows) {
      if (data.dtypes[p.dtype[i]] !== dtype.value) continue;
      if (known(p.bound[i])) bounds.push(p.bound[i]);
      for (let c = p.first[i]; c < data.ends(i); c++) {
        if (filter.state.algorithm && data.algorithms[t.algorithm[c]] !== filter.state.algorithm) continue;
        if (!(t.error[c] > 0 && t.error[c] < Infinity)) continue;
        if (t.speedup[c] > 0) { points.push(c); slowest = Math.min(slowest, t.speedup[c]); }
        else untimed.push(c);
      }
    }
    const strip = slowest / 2.2; // what was not timed has a place of its own
    bounds.sort((a, b) => a - b);
    const least = bounds[0];
    const most = bounds.at(-1);
    const at = (c) => [t.speedup[c] > 0 ? t.speedup[c] : strip * 1.16 ** shift(c, 3), t.error[c]];
    const { traces, left } = scatter(data, points.concat(untimed), t.algorithm, at, { size: 6, opacity: 0.6 });
    figure.say(`${whole(points.length)} results of candidates${left}, and ${whole(untimed.length)} at the left that have no time: too inaccurate, or given up.`);
    const line = (y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: colour("bad"), width: 1.5, dash: "dash" } });
    const band = { type: "rect", xref: "paper", x0: 0, x1: 1, y0: least, y1: most, fillcolor: colour("bad"), opacity: 0.1, line: { width: 0 } };
    draw(figure, traces, {
      shapes: bounds.length ? (most > least * 1.02 ? [line(least), line(most), band] : [line(least)]) : [],
      annotations: [
        ...(bounds.length ? [{ xref: "paper", x: 1, xanchor: "right", y: Math.log10(most), yanchor: "bottom", text: most > least * 1.02 ? `bound, by problem ${small(least)} to ${small(most)}` : `bound ${small(least)}`, showarrow: false, font: { color: colour("bad"), size: 11 } }] : []),
        ...(untimed.length ? [{ x: Math.log10(strip), yref: "paper", y: 0, yanchor: "bottom", text: "not timed", textangle: -90, showarrow: false, xshift: -16, font: { color: colour("muted"), size: 11 } }] : []),
      ],
      xaxis: logAxis("native's time over the candidate's", ratioTick, TICKS.filter((value) => value > 2 * strip), true),
      yaxis: logAxis("relative L2 error", (value) => value.toExponential(0), [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10]),
    }, { tell: (point) => candidateTold(data, point.customdata), open: (point) => open(data.problemOf[point.customdata]) });
  };
  return figure;
}

/** Points: what every candidate's memory is to native's, by its speed. */
function memoryFigure({ data, filter, open }) {
  const figure = makeFigure("memory", "Memory against speed");
  const p = data.problems;
  const t = data.candidates;
  const native = data.names.indexOf("native");
  const bases = new Float64Array(data.count);
  figure.draw = () => {
    const points = [];
    for (const i of filter.rows) {
      let base = NaN;
      for (let c = p.first[i]; c < data.ends(i); c++) if (t.candidate[c] === native) base = t.peak[c];
      if (!(base > 0)) continue;
      bases[i] = base;
      for (let c = p.first[i]; c < data.ends(i); c++) {
        if (t.candidate[c] === native || !(t.peak[c] > 0 && t.speedup[c] > 0)) continue;
        if (filter.state.algorithm && data.algorithms[t.algorithm[c]] !== filter.state.algorithm) continue;
        points.push(c);
      }
    }
    const { traces, left } = scatter(data, points, t.algorithm, (c) => [t.speedup[c], t.peak[c] / bases[data.problemOf[c]]], { size: 6, opacity: 0.6 });
    figure.say(`Measured peaks, operands and result included, of ${whole(points.length)} candidates beside native${left}. Lower right is better.`);
    const cross = { color: colour("muted"), width: 1, dash: "dot" };
    draw(figure, traces, {
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: cross }, { type: "line", yref: "paper", y0: 0, y1: 1, x0: 1, x1: 1, line: cross }],
      xaxis: logAxis("native's time over the candidate's", ratioTick, TICKS, true),
      yaxis: logAxis("peak memory over native's", ratioTick),
    }, {
      none: filter.rows.length ? "No peak was measured: autoconv tune and the sweep measure them, on a GPU." : undefined,
      tell: (point) => { const c = point.customdata; return `${candidateTold(data, c)}\npeak ${bytesText(t.peak[c])}, ${times(point.y)} native's`; },
      open: (point) => open(data.problemOf[point.customdata]),
    });
  };
  return figure;
}

/** Bars: which algorithms failed how often; and the reasons, each with an example. */
function failuresFigure({ data, filter, open }) {
  const figure = makeFigure("failures", "Failures", { wide: true });
  const list = make("ul", { class: "reasons", id: "reasons" });
  figure.element.append(list);
  const t = data.candidates;
  const p = data.problems;
  const kinds = Object.keys(STATUSES);
  const number = data.statuses.map((name) => kinds.indexOf(name));
  figure.draw = () => {
    const counts = new Map();
    const reasons = new Map();
    let total = 0;
    for (const i of filter.rows) {
      for (let c = p.first[i]; c < data.ends(i); c++) {
        const kind = number[t.status[c]];
        if (kind < 0 || (filter.state.algorithm && data.algorithms[t.algorithm[c]] !== filter.state.algorithm)) continue;
        total++;
        const of = counts.get(t.algorithm[c]) ?? counts.set(t.algorithm[c], new Array(kinds.length).fill(0)).get(t.algorithm[c]);
        of[kind]++;
        // Numbers differ from problem to problem, and say the same.
        const said = `${words(kinds[kind])}: ${data.reasons[t.reason[c]].replace(/\d[\d.e+-]*/g, "…") || "no reason was noted"}`;
        const reason = reasons.get(said) ?? reasons.set(said, { count: 0, row: i, text: data.reasons[t.reason[c]], kind }).get(said);
        reason.count++;
      }
    }
    const names = [...counts].sort((a, b) => b[1].reduce((x, y) => x + y) - a[1].reduce((x, y) => x + y));
    figure.say(`${whole(total)} results that cannot win: `
      + (total ? kinds.map((kind, k) => [kind, names.reduce((sum, [, of]) => sum + of[k], 0)]).filter(([, n]) => n).map(([kind, n]) => `${whole(n)} ${words(kind)}`).join(", ") + ". Below, what they said." : "none."));
    const height = 84 + 26 * names.length;
    figure.place.style.height = `${height}px`;
    figure.place.style.minHeight = "0";
    draw(figure, kinds.map((kind, k) => ({
      type: "bar", orientation: "h", name: words(kind), x: names.map(([, of]) => of[k]), y: names.map((_, place) => place),
      marker: { color: STATUSES[kind] }, customdata: names.map(([algorithm]) => [algorithm, k]), width: 0.7,
    })).filter((trace) => trace.x.some(Boolean)), {
      height, barmode: "stack", showlegend: true, legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal" }, margin: { l: 20, r: 20, t: 30, b: 34 },
      xaxis: { title: {}, rangemode: "tozero" },
      yaxis: { autorange: "reversed", tickvals: names.map((_, place) => place), ticktext: names.map(([algorithm]) => `${plain(data.algorithms[algorithm])}  `), showgrid: false, zeroline: false, title: {} },
    }, {
      none: "Nothing failed.",
      tell: ({ customdata: [algorithm, k], x }) => `${data.algorithms[algorithm]}: ${whole(x)} ${words(kinds[k])}`,
      open: ({ customdata: [algorithm] }) => filter.set({ algorithm: data.algorithms[algorithm] }),
    });
    list.replaceChildren(...[...reasons.values()].sort((a, b) => b.count - a.count).slice(0, 8).map(({ count, row, text, kind }) => make("li", {},
      make("b", {}, whole(count)), make("button", { type: "button", title: "Show an example", onclick: () => open(row) }, `${words(kinds[kind])}: ${text || "no reason was noted"}`))));
  };
  return figure;
}
