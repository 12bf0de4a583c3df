/* Plots of candidates: every result that was measured, and those that failed. */

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
    for (const i of filter.rows) {
      if (data.dtypes[p.dtype[i]] !== dtype.value) continue;
      if (p.bound[i] > 0 && p.bound[i] < Infinity) bounds.push(p.bound[i]);
      for (let c = p.first[i]; c < data.ends(i); c++) {
        if (filter.state.algorithm && data.algorithms[t.algorithm[c]] !== filter.state.algorithm) continue;
        if (!(t.error[c] > 0 && t.error[c] < Infinity)) continue;
        (t.speedup[c] > 0 ? points : untimed).push(c);
      }
    }
    const speeds = spanOf([1, ...points.map((c) => t.speedup[c])]);
    const width = Math.log(speeds[1] / speeds[0]);
    const strip = speeds[0] / Math.exp((isNarrow() ? 0.13 : 0.08) * width); // what was not timed has a place of its own
    const [least, most] = bounds.length ? spanOf(bounds, 1) : [NaN, NaN];
    const errors = spanOf([...bounds, ...points.concat(untimed).map((c) => t.error[c])]);
    const at = (c) => [t.speedup[c] > 0 ? t.speedup[c] : strip * Math.exp(0.015 * width * shift(c, 3)), t.error[c]];
    const { traces, left } = scatter(data, points.concat(untimed), t.algorithm, at, { size: 6, opacity: 0.6 });
    figure.say(`${whole(points.length)} results of candidates, and ${whole(untimed.length)} at the left that have no time, too inaccurate or given up${left}.`);
    const line = (y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: colour("bad"), width: 1.5, dash: "dash" } });
    const band = { type: "rect", xref: "paper", x0: 0, x1: 1, y0: least, y1: most, fillcolor: colour("bad"), opacity: 0.1, line: { width: 0 } };
    draw(figure, traces, {
      shapes: bounds.length ? (most > least * 1.02 ? [line(least), line(most), band] : [line(least)]) : [],
      annotations: [
        ...(bounds.length ? [{ xref: "paper", x: 1, xanchor: "right", y: Math.log10(most), yanchor: "bottom", text: most > least * 1.02 ? `bound, by problem ${small(least)} to ${small(most)}` : `bound ${small(least)}`, showarrow: false, font: { color: colour("bad"), size: 11 } }] : []),
        ...(untimed.length ? [{ x: Math.log10(strip), yref: "paper", y: 0, yanchor: "bottom", text: "not timed", textangle: -90, showarrow: false, xshift: -16, font: { color: colour("muted"), size: 11 } }] : []),
      ],
      xaxis: logAxis("native's time over the candidate's", [untimed.length ? strip / Math.exp(0.04 * width) : speeds[0], speeds[1]], ticksWithin(speeds), ratioTick),
      yaxis: logAxis("relative L2 error", errors, ticksWithin(errors), errorTick),
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
    const memory = (c) => t.peak[c] / bases[data.problemOf[c]];
    const [speeds, ratios] = [spanOf([1, ...points.map((c) => t.speedup[c])]), spanOf([1, ...points.map(memory)])];
    const { traces, left } = scatter(data, points, t.algorithm, (c) => [t.speedup[c], memory(c)], { size: 6, opacity: 0.6 });
    figure.say(`Measured peaks, operands and result included, of ${whole(points.length)} candidates beside native${left}. Lower right is better.`);
    const cross = { color: colour("muted"), width: 1, dash: "dot" };
    draw(figure, traces, {
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: cross }, { type: "line", yref: "paper", y0: 0, y1: 1, x0: 1, x1: 1, line: cross }],
      xaxis: logAxis("native's time over the candidate's", speeds, ticksWithin(speeds), ratioTick),
      yaxis: logAxis("peak memory over native's", ratios, ticksWithin(ratios), ratioTick),
    }, {
      none: filter.rows.length ? "No peak was measured: autoconv tune and the sweep measure them, on a GPU." : undefined,
      tell: (point) => { const c = point.customdata; return `${candidateTold(data, c)}\npeak ${bytesText(t.peak[c])}, ${times(point.y)} native's`; },
      open: (point) => open(data.problemOf[point.customdata]),
    });
  };
  return figure;
}

/** What one of several said, where the others may have said it with other numbers; or what all said. */
function exampleOf(pattern, text, count) {
  if (!text) return ": no reason was noted";
  return count > 1 && pattern.includes("…") ? `, for instance: ${text}` : `: ${text}`;
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
  const patterns = data.reasons.map(() => null); // numbers differ from problem to problem, and say the same
  const patternOf = (reason) => (patterns[reason] ??= data.reasons[reason].replace(/\d[\d.e+-]*/g, "…") || "no reason was noted");
  let names = [];
  const heightOf = () => 84 + 26 * names.length;
  // Counted before it is drawn: how high it is depends on that, and nothing is to move under a reader who comes near.
  figure.prepare = () => {
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
        const said = `${words(kinds[kind])}: ${patternOf(t.reason[c])}`;
        const reason = reasons.get(said) ?? reasons.set(said, { said, count: 0, row: i, text: data.reasons[t.reason[c]], kind }).get(said);
        reason.count++;
      }
    }
    names = [...counts].sort((a, b) => b[1].reduce((x, y) => x + y) - a[1].reduce((x, y) => x + y));
    figure.say(`${whole(total)} results that cannot win: `
      + (total ? kinds.map((kind, k) => [kind, names.reduce((sum, [, of]) => sum + of[k], 0)]).filter(([, n]) => n).map(([kind, n]) => `${whole(n)} ${words(kind)}`).join(", ") + ". Below, what they said." : "none."));
    figure.fit(total ? heightOf() : NONE);
    list.replaceChildren(...[...reasons.values()].sort((a, b) => b.count - a.count).slice(0, 8).map(({ said, count, row, text, kind }) => make("li", {},
      make("b", {}, whole(count)), make("button", { type: "button", title: "Show an example", onclick: () => open(row) }, `${words(kinds[kind])}${exampleOf(said, text, count)}`))));
  };
  figure.draw = () => {
    const height = heightOf();
    draw(figure, kinds.map((kind, k) => ({
      type: "bar", orientation: "h", name: words(kind), x: names.map(([, of]) => of[k]), y: names.map((_, place) => place),
      marker: { color: STATUSES[kind] }, customdata: names.map(([algorithm]) => [algorithm, k]), width: 0.7,
    })).filter((trace) => trace.x.some(Boolean)), {
      height, barmode: "stack", showlegend: true, legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal" }, margin: { l: 20, r: 20, t: 30, b: 34 },
      xaxis: countAxis("", Math.max(0, ...names.map(([, of]) => of.reduce((x, y) => x + y)))),
      yaxis: { autorange: "reversed", tickvals: names.map((_, place) => place), ticktext: names.map(([algorithm]) => `${plain(data.algorithms[algorithm])}  `), showgrid: false, zeroline: false, title: {} },
    }, {
      none: "Nothing failed.",
      tell: ({ customdata: [algorithm, k], x }) => `${data.algorithms[algorithm]}: ${whole(x)} ${words(kinds[k])}`,
      open: ({ customdata: [algorithm] }) => filter.set({ algorithm: data.algorithms[algorithm] }),
    });
  };
  return figure;
}
