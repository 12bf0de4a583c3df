/* Axes: spans that say something of few values too, and ticks that people read. */

const LEAST_SPAN = 4; // what a logarithmic axis spans at least, greatest over least
const SERIES = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]; // ticks of a decade, from few to many
const MOST_TICKS = 10;

const isNarrow = () => innerWidth < 620;

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

/** What a logarithmic axis spans: all values, and where they are too near to one another a little more on both sides. */
function spanOf(values, least = LEAST_SPAN) {
  let [low, high] = [Infinity, 0];
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (!(high >= low)) return [1, least];
  const more = Math.max(1, Math.sqrt((least * low) / high));
  return [low / more, high * more];
}

const isWithin = (value, [low, high]) => value > low * (1 - 1e-9) && value < high * (1 + 1e-9);

/** Ticks within a span: as few to a decade as give three or four in all; never less than two of a span of `LEAST_SPAN`. */
function ticksWithin(span) {
  const enough = isNarrow() ? 3 : 4;
  const [first, last] = span.map((value) => Math.floor(Math.log10(value)));
  let ticks = [];
  for (const series of SERIES) {
    ticks = [];
    for (let power = first; power <= last; power++) ticks.push(...series.map((digit) => Number(`${digit}e${power}`)).filter((value) => isWithin(value, span)));
    if (ticks.length >= enough) break;
  }
  const step = Math.ceil(ticks.length / MOST_TICKS);
  return ticks.filter((value) => Math.round(Math.log10(value)) % step === 0 || step === 1);
}

/** Ticks at the whole numbers that occur, where these are few: null where they are many. Beside a single one, its half and its double. */
function ticksAt(values, span) {
  const found = [...new Set(values)].sort((a, b) => a - b);
  if (found.length === 1) return [found[0] / 2, found[0], found[0] * 2].filter(Number.isInteger);
  const gap = Math.log(span[1] / span[0]) / (isNarrow() ? 7 : 12); // that labels need
  return found.every((value, at) => !at || Math.log(value / found[at - 1]) >= gap) ? found : null;
}

/** Powers of two within a span, no more than labels have room. */
function doublings(span) {
  const [first, last] = [Math.ceil(Math.log2(span[0]) - 1e-9), Math.floor(Math.log2(span[1]) + 1e-9)];
  const step = Math.ceil((last - first + 1) / (isNarrow() ? 7 : 12));
  return Array.from({ length: last - first + 1 }, (_, at) => first + at).filter((power) => power % step === 0).map((power) => 2 ** power);
}

/** A logarithmic axis over a span, with a little room at its ends. */
function logAxis(title, span, ticks, tick = (value) => String(value)) {
  const [low, high] = span.map(Math.log10);
  const room = 0.05 * (high - low);
  return { type: "log", title: { text: title, standoff: 12 }, range: [low - room, high + room], tickvals: ticks, ticktext: ticks.map(tick), tickangle: 0 };
}

/** An axis that counts: from zero, by whole numbers. */
const countAxis = (title, most) => ({ title: title ? { text: title, standoff: 12 } : {}, rangemode: "tozero", tickformat: ",d", ...(most < 10 ? { dtick: Math.ceil(most / 5) || 1 } : {}) });

const ratioTick = (value) => `${value}×`;
const errorTick = (value) => Number(value.toPrecision(2)).toExponential();
const pixelTick = (value) => (value >= 1e6 ? `${Number((value / 1e6).toPrecision(3))}M` : value >= 1e4 ? `${Number((value / 1e3).toPrecision(3))}k` : String(value));
