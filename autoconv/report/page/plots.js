/* Plots of what was measured. Each is a figure with `draw`, which shows the problems that pass the filter. */

/** What native takes, and what is chosen, of all calls of the problems that pass, network by network; of the one that is selected alone, since of others only what they share with it is there. */
function gainsOf(data, filter) {
  const p = data.problems;
  const found = new Map();
  const { network } = filter.state;
  for (const i of filter.rows) {
    for (const [name, count] of data.networkSets[p.networks[i]]) {
      if (network && name !== network) continue;
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

/** Whether the filter leaves a part of a network's problems: all but the choice of a network does. */
const isPart = (filter) => Object.keys(filter.state).some((name) => name !== "network" && filter.isSet(name));

const PAPER_HEIGHT = 500; // pixels that its bars have on the first sheet

/** Bars: how much faster each network is than with native alone. */
function gainsFigure({ data, filter }) {
  const figure = makeFigure("gains", "Gain by network", { wide: true });
  figure.draw = () => {
    const gains = gainsOf(data, filter).sort((a, b) => (a.name === data.others) - (b.name === data.others) || data.isOwn(b.name) - data.isOwn(a.name) || b.gain - a.gain);
    const narrow = isNarrow();
    figure.say(`Time of ${isPart(filter) ? "those of its convolutions that pass the filter" : "all its convolutions"} with native, over the time with what is chosen, weighted by how often a pass calls each${data.own.length && gains.length > 1 ? "; yours first, then those known by their shapes" : ""}.${filter.state.network ? "" : " A bar selects its network."}`);
    const short = (name) => shortened(name, narrow ? 22 : 46);
    // On paper it has room beside what the page begins with.
    const line = isPaper() ? Math.max(11, Math.min(21, PAPER_HEIGHT / gains.length)) : 21;
    const height = 76 + Math.ceil(line * gains.length);
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

/** Where points are drawn: at [x, y], and those that lie on one another a little apart, by a part of what the axes span. */
function apart(points, [xs, ys], [xSpan, ySpan]) {
  const counts = new Map();
  const placeOf = (i) => xs(i) * 2 ** 32 + ys(i);
  for (const i of points) counts.set(placeOf(i), (counts.get(placeOf(i)) ?? 0) + 1);
  const moved = (value, [low, high], by) => value * (high / low) ** (0.012 * by);
  return (i) => (counts.get(placeOf(i)) > 1 ? [moved(xs(i), xSpan, shift(i, 1)), moved(ys(i), ySpan, shift(i, 2))] : [xs(i), ys(i)]);
}

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
    const channels = (i) => p.c_in[i];
    const pixels = (i) => p.h[i] * p.w[i];
    const [xs, ys] = [points.map(channels), points.map(pixels)];
    const spans = [spanOf(xs), spanOf(ys)];
    const { traces, left } = scatter(data, points, p.algorithm, apart(points, [channels, pixels], spans));
    figure.say(`${whole(points.length)} problems by the size of a frame and the input's channels${left}. Points on one another are moved apart a little.`);
    draw(figure, traces, {
      xaxis: logAxis("input channels", spans[0], ticksAt(xs, spans[0]) ?? doublings(spans[0])),
      yaxis: logAxis("frame, H × W pixels", spans[1], ticksAt(ys, spans[1]) ?? ticksWithin(spans[1]), pixelTick),
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
    let [least, top] = [1, 2];
    const totals = new Map(); // by bin
    for (const i of filter.rows) {
      if (!known(p.speedup[i])) continue;
      if (p.algorithm[i] === data.native) { kept++; continue; }
      others++;
      const place = Math.floor(Math.log2(p.speedup[i]) / bin);
      const bins = counts.get(p.algorithm[i]) ?? counts.set(p.algorithm[i], new Map()).get(p.algorithm[i]);
      bins.set(place, (bins.get(place) ?? 0) + 1);
      totals.set(place, (totals.get(place) ?? 0) + 1);
      top = Math.max(top, p.speedup[i]);
      least = Math.min(least, p.speedup[i]);
    }
    figure.say(`${whole(others)} problems where another way than native is chosen; native is kept on ${whole(kept)}${kept + others ? ` (${share(kept / (kept + others))})` : ""}. A bar selects its problems.`);
    const traces = [...counts].sort((a, b) => a[0] - b[0]).map(([algorithm, bins]) => ({
      type: "bar", x: [...bins.keys()].map((place) => (place + 0.5) * bin), y: [...bins.values()], width: bin * 0.92,
      marker: { color: lookOf(data.algorithms[algorithm])[0] }, customdata: [...bins.keys()].map((place) => [algorithm, place]),
    }));
    const ticks = top < 6 ? ticksWithin([least, top]) : doublings([least, top]);
    draw(figure, traces, {
      barmode: "stack",
      xaxis: { title: { text: "times as fast as native (log scale)", standoff: 12 }, tickvals: ticks.map(Math.log2), ticktext: ticks.map(ratioTick), tickangle: 0, range: [Math.log2(least) - bin / 2, Math.log2(top) + bin] },
      yaxis: countAxis("problems", Math.max(0, ...totals.values())),
    }, {
      none: kept ? "Native is the fastest on all of them." : undefined,
      tell: ({ customdata: [algorithm, place], y }) => `${data.algorithms[algorithm]}\n${times(2 ** (place * bin))} to ${times(2 ** ((place + 1) * bin))}: ${whole(y)} problems`,
      open: ({ customdata: [algorithm, place] }) => filter.set({ winner: data.algorithms[algorithm], least: (2 ** (place * bin)).toPrecision(4), most: (2 ** ((place + 1) * bin)).toPrecision(4) }),
    });
  };
  return figure;
}

