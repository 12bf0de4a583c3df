/* The cost model: how good its choices are, and whether its intervals hold. It follows no filter. */

// One name a way of choosing, wherever it is drawn: colour, line, and what it does.
const WAYS = {
  predict: ["#1f77c9", "solid", "the policy of that name: the model's choice where it is surely no slower than native, else native"],
  auto: ["#009e73", "solid", "the policy of that name: the model's choice where it is sure, else the candidates in question are timed"],
  always: ["#e69f00", "dash", "the fastest by the model, sure or not"],
  neighbour: ["#cc79a7", "dash", "what won on the most similar problem that was timed"],
  native: ["#8c95a4", "dot", "never another way"],
  winner: ["#d55e00", "dot", "the fastest when timed: what is left is the noise of timing, below which nothing gets"],
};
const INTERVALS = {
  native: "the choice is no slower than native by more than the model says",
  best: "the choice is no slower than the best by more than the model says",
  question: "the best is among the candidates that the model would have timed",
};
const LEAST_REGRET = 1e-3; // less than that no timing tells

/** A list that says what names in a plot stand for, a line each: of [sign, colour, name, text]. */
const legendOf = (entries) => make("ul", { class: "ways" }, ...entries.map(([sign, signColour, name, text]) => {
  const mark = make("span", { class: "glyph", "aria-hidden": "true" }, sign);
  if (signColour) mark.style.color = signColour;
  return make("li", {}, mark, make("span", {}, make("strong", {}, name), text ? `: ${text}` : ""));
}));

/** A section about the models in use; null where the report has no environment. */
function modelSection({ data, redraw }) {
  if (!data.models.length) return null;
  const names = data.models.map((model, i) => [String(i), data.environments[i].identity.device]);
  const split = makeChoice("held out", [], () => redraw(bars));
  const choice = makeChoice("device", names, () => { introduce(); figures.forEach(redraw); });
  const head = make("p", { class: "muted" });
  const legends = make("div", { class: "legends" });
  const element = make("section", { class: "card wide", id: "model" }, make("h2", {}, "Cost model"), head,
    ...(names.length > 1 ? [make("div", { class: "controls" }, choice.element)] : []));
  const model = () => data.models[Number(choice.value)];
  const waysOf = (found) => Object.keys(WAYS).filter((way) => found.curves?.[way] || Object.values(found.judgements ?? {}).some((ways) => way in ways));

  /** Say which model it is, and what the names in its plots stand for. */
  function introduce() {
    const found = model();
    head.textContent = found.name ? `${found.name}, trained on ${whole(found.problems)} problems of ${found.devices.join(", ")}${found.why ? `. ${found.why}` : ""}. Regret is how much slower a choice is than the best candidate: 0% is the best, 100% takes twice its time.` : `None is in use: ${found.why || "there is none"}.`;
    split.offer(Object.keys(found.judgements ?? {}).map((name) => [name, name]));
    legends.replaceChildren(
      ...(waysOf(found).length ? [legendOf(waysOf(found).map((way) => ["■", WAYS[way][0], way, WAYS[way][2]]))] : []),
      ...(found.coverages?.length ? [legendOf(found.coverages.map(({ interval }) => ["●", colour("accent"), interval, INTERVALS[interval] ?? ""]))] : []));
  }

  const bars = makeFigure("regret", "Regret by way of choosing", { controls: [split.element] });
  bars.draw = () => {
    const ways = model().judgements?.[split.value] ?? {};
    const order = Object.keys(WAYS).filter((way) => way in ways);
    const { problems } = ways[order[0]] ?? { problems: 0 };
    bars.say(order.length ? `On ${whole(problems)} problems that the model had not seen, from its card. Upper bar: the mean; paler: no more than that on 95 of 100.` : "");
    const trace = (of, opacity) => ({
      type: "bar", orientation: "h", x: order.map((way) => ways[way][of]), y: order.map((_, place) => place), marker: { color: order.map((way) => WAYS[way][0]), opacity }, customdata: order,
      text: order.map((way) => share(ways[way][of], 1)), textposition: "outside", cliponaxis: false, textfont: { size: 10 }, constraintext: "none",
    });
    draw(bars, order.length ? [trace("regret_mean", 1), trace("regret_p95", 0.45)] : [], {
      barmode: "group", bargap: 0.25, margin: { l: 20, r: 46, t: 8, b: 46 },
      xaxis: { tickformat: ".0%", title: { text: "regret", standoff: 12 }, rangemode: "tozero", nticks: 5, tickangle: 0 },
      yaxis: { autorange: "reversed", tickvals: order.map((_, place) => place), ticktext: order.map((way) => `${way}  `), showgrid: false, zeroline: false, title: {} },
    }, {
      none: "No model, no card.",
      tell: ({ customdata }) => { const of = ways[customdata]; return `${customdata}: ${WAYS[customdata][2]}\nmean ${share(of.regret_mean, 2)}, on 95 of 100 at most ${share(of.regret_p95, 1)}, worst ${share(of.regret_worst)}\nslower than native by over 2% on ${share(of.worse_share, 2)}; ${share(of.captured, 1)} of the gain captured; ${share(of.timed_share, 1)} timed`; },
    });
  };

  const curves = makeFigure("curves", "Regret, problem by problem");
  curves.draw = () => {
    const found = model();
    const order = Object.keys(WAYS).filter((way) => found.curves?.[way]);
    curves.say(order.length ? `The model asked here about ${whole(found.examples)} of this report's problems. ${found.seen ? "It learned from this device, and most likely from these: flattering." : "It did not learn from this device."}` : "");
    const most = Math.max(LEAST_REGRET, ...order.flatMap((way) => found.curves[way]));
    const span = spanOf([LEAST_REGRET, most], 100);
    draw(curves, order.map((way) => ({
      type: "scatter", mode: "lines", name: way, x: data.shares.map((value) => 100 * value), y: found.curves[way].map((value) => Math.max(value, LEAST_REGRET)), line: { color: WAYS[way][0], dash: WAYS[way][1], width: 2 }, customdata: data.shares.map(() => way),
    })), {
      xaxis: { title: { text: "problems, least regret first", standoff: 12 }, ticksuffix: "%", range: [50, 100], nticks: 6 },
      yaxis: logAxis("regret, at most", [LEAST_REGRET, span[1]], ticksWithin([LEAST_REGRET, span[1]]), (value) => `${Number((100 * value).toPrecision(3))}%`),
    }, { none: "No model, or nothing that it could be asked about.", tell: ({ customdata, x, y }) => `${customdata}: ${WAYS[customdata][2]}\n${x.toFixed(1)}% of the problems: at most ${share(y, 1)}` });
  };

  const calibration = makeFigure("calibration", "Does it know how sure it is?");
  calibration.draw = () => {
    const found = model().coverages ?? [];
    const least = Math.min(0.8, ...found.map((each) => Math.min(each.nominal, each.seen) - 0.03));
    calibration.say(found.length ? "How often what it says was meant to hold, and held, on networks that it had not seen, from its card. On the line or above it is well." : "");
    draw(calibration, found.length ? [
      { type: "scatter", mode: "lines", x: [least, 1], y: [least, 1], line: { color: colour("muted"), dash: "dot", width: 1 }, customdata: [null, null] },
      { type: "scatter", mode: "markers+text", x: found.map((each) => each.nominal), y: found.map((each) => each.seen), text: found.map((each) => plain(each.interval)), textposition: found.map((each) => (each.interval === "best" || each.nominal < 0.85 ? "bottom right" : "top left")), marker: { size: 12, color: colour("accent") }, customdata: found.map((_, i) => i), cliponaxis: false },
    ] : [], {
      xaxis: { title: { text: "meant to hold, of all choices", standoff: 12 }, tickformat: ".0%", range: [least, 1.01], nticks: 6 },
      yaxis: { title: { text: "held, of all choices", standoff: 12 }, tickformat: ".0%", range: [least, 1.01], nticks: 6 },
    }, {
      none: "No model, no card.",
      tell: ({ customdata }) => { const each = found[customdata]; return each ? `${each.interval}: ${INTERVALS[each.interval] ?? ""}\nmeant to hold for ${share(each.nominal)}, held for ${share(each.seen, 1)} of ${whole(each.choices)} choices, ${whole(each.networks)} networks` : "as it should be"; },
    });
  };
  const figures = [bars, curves, calibration];
  element.append(make("div", { class: "figures three" }, ...figures.map((figure) => figure.element)), legends);
  introduce();
  return { element, figures };
}
