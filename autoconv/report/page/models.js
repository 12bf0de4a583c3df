/* The cost model: how good its choices are, and whether its intervals hold. It follows no filter. */

const WAYS = {
  predict: ["predict: its choice where it is safe, else native", "#1f77c9", "solid"],
  auto: ["auto: its choice where it is sure, else timed", "#009e73", "solid"],
  always: ["its choice, sure or not", "#e69f00", "dash"],
  neighbour: ["what won on the nearest problem", "#cc79a7", "dash"],
  native: ["native, always", "#8c95a4", "dot"],
  winner: ["measured: the noise below all others", "#d55e00", "dot"],
};
const INTERVALS = { native: "no slower than native by more than it says", best: "no further from the best than it says", question: "the best is among those in question" };

/** A section about the models in use; null where the report has no environment. */
function modelSection({ data, redraw }) {
  if (!data.models.length) return null;
  const names = data.models.map((model, i) => [String(i), data.environments[i].identity.device]);
  const split = makeChoice("held out", [], () => redraw(bars));
  const choice = makeChoice("device", names, () => figures.forEach(redraw));
  const head = make("p", { class: "muted" });
  const element = make("section", { class: "card wide", id: "model" }, make("h2", {}, "Cost model"), head,
    ...(names.length > 1 ? [make("div", { class: "controls" }, choice.element)] : []));
  const model = () => data.models[Number(choice.value)];
  const list = make("ul", { class: "legend ways" });

  const bars = makeFigure("regret", "Regret by way", { controls: [split.element] });
  bars.draw = () => {
    const found = model();
    head.textContent = found.name ? `${found.name}, trained on ${whole(found.problems)} problems of ${found.devices.join(", ")}${found.why ? `. ${found.why}` : ""}` : `None is in use: ${found.why || "there is none"}.`;
    split.offer(Object.keys(found.judgements ?? {}).map((name) => [name, name]));
    const ways = found.judgements?.[split.value] ?? {};
    const order = Object.keys(WAYS).filter((way) => way in ways);
    const { problems } = ways[order[0]] ?? { problems: 0 };
    bars.say(order.length ? `From its card: ${whole(problems)} problems that it had not seen. Time of the choice over the best's, less one.` : "");
    const trace = (of, name, pattern) => ({ type: "bar", name, x: order, y: order.map((way) => ways[way][of]), marker: { color: order.map((way) => WAYS[way][1]), opacity: pattern ? 0.45 : 1 }, customdata: order, text: order.map((way) => share(ways[way][of], 1)), textposition: "outside", cliponaxis: false, textfont: { size: 10 }, constraintext: "none", textangle: 0 });
    draw(bars, order.length ? [trace("regret_mean", "mean", false), trace("regret_p95", "95th percentile", true)] : [], {
      barmode: "group", margin: { l: 54, r: 10, t: 20, b: 62 }, yaxis: { tickformat: ".0%", title: { text: "mean, and paler 95th percentile", standoff: 12 }, rangemode: "tozero" }, xaxis: { title: {}, showgrid: false, tickangle: -35 },
    }, {
      none: "No model, no card.",
      tell: ({ customdata }) => { const of = ways[customdata]; return `${WAYS[customdata][0]}\nmean ${share(of.regret_mean, 2)}, 95th ${share(of.regret_p95, 1)}, worst ${share(of.regret_worst)}\nslower than native by over 2% on ${share(of.worse_share, 2)}; ${share(of.captured, 1)} of the gain captured; ${share(of.timed_share, 1)} timed`; },
    });
  };

  const curves = makeFigure("curves", "Regret, problem by problem");
  curves.draw = () => {
    const found = model();
    const order = Object.keys(WAYS).filter((way) => found.curves?.[way]);
    curves.say(order.length ? `The model asked here about ${whole(found.examples)} of this report's problems. ${found.seen ? "It learned from this device, and most likely from these: flattering." : "It did not learn from this device."}` : "");
    draw(curves, order.map((way) => ({
      type: "scatter", mode: "lines", name: way, x: data.shares.map((value) => 100 * value), y: found.curves[way].map((value) => Math.max(value, 1e-3)), line: { color: WAYS[way][1], dash: WAYS[way][2], width: 2 }, customdata: data.shares.map(() => way),
    })), {
      xaxis: { title: { text: "share of problems, best first", standoff: 12 }, ticksuffix: "%", range: [50, 100] },
      yaxis: { type: "log", title: { text: "regret at most", standoff: 12 }, tickvals: [1e-3, 0.01, 0.1, 1, 10], ticktext: ["0.1%", "1%", "10%", "100%", "1000%"] },
    }, { none: "No model, or nothing that it could be asked about.", tell: ({ customdata, x, y }) => `${WAYS[customdata][0]}\n${x.toFixed(1)}% of the problems: at most ${share(y, 1)}` });
    list.replaceChildren(...order.map((way) => { const dot = make("span", { class: "glyph", "aria-hidden": "true" }, "━"); dot.style.color = WAYS[way][1]; return make("li", {}, dot, ` ${WAYS[way][0]}`); }));
  };

  const calibration = makeFigure("calibration", "Calibration");
  calibration.draw = () => {
    const found = model().coverages ?? [];
    const least = Math.min(0.8, ...found.map((each) => Math.min(each.nominal, each.seen) - 0.03));
    calibration.say(found.length ? "From its card: how often an interval was to hold, and held, on networks held out. On or above the line is well." : "");
    draw(calibration, found.length ? [
      { type: "scatter", mode: "lines", x: [least, 1], y: [least, 1], line: { color: colour("muted"), dash: "dot", width: 1 }, customdata: [null, null] },
      { type: "scatter", mode: "markers+text", x: found.map((each) => each.nominal), y: found.map((each) => each.seen), text: found.map((each) => each.interval), textposition: found.map((each) => ({ question: "top left", best: "bottom right" })[each.interval] ?? "top left"), marker: { size: 12, color: colour("accent") }, customdata: found.map((_, i) => i), cliponaxis: false },
    ] : [], {
      xaxis: { title: { text: "was to hold", standoff: 12 }, tickformat: ".0%", range: [least, 1.01] }, yaxis: { title: { text: "held", standoff: 12 }, tickformat: ".0%", range: [least, 1.01] },
    }, {
      none: "No model, no card.",
      tell: ({ customdata }) => { const each = found[customdata]; return each ? `${INTERVALS[each.interval] ?? each.interval}\nto hold for ${share(each.nominal)}, held for ${share(each.seen, 1)} of ${whole(each.choices)} choices, ${whole(each.networks)} networks` : "as it should be"; },
    });
  };
  const figures = [bars, curves, calibration];
  element.append(make("div", { class: "figures three" }, ...figures.map((figure) => figure.element)), list);
  return { element, figures };
}
