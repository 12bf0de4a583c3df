/* The look: colours, symbols, numbers for people, and elements. Texts are only ever set as text. */

// One colour and symbol an algorithm, the same everywhere. By the simulation of Machado et al. (IEEE TVCG 15, 2009) those
// that meet in one plot are told apart with any colour vision, on light and on dark; the symbols say it once more.
const ALGORITHMS = {
  native: ["#8c95a4", "circle", "●"],
  kd_decomposition: ["#218deb", "square", "■"],
  depth_concat: ["#eba624", "diamond", "◆"],
  depth_winograd: ["#0ba077", "triangle-up", "▲"],
  matmul: ["#9b597a", "cross", "✚"],
  im2col: ["#815bbf", "x", "✖"],
  depth_conv2d: ["#5eb9f1", "triangle-down", "▼"],
  turned_kernel: ["#fb7c45", "star", "★"],
  implicit_gemm: ["#96821f", "triangle-left", "◀"],
  wgrad_convolution: ["#c03c64", "triangle-right", "▶"],
  wgrad_depth_taps: ["#4dced5", "hexagon", "⬢"],
  wgrad_matmuls: ["#a47050", "pentagon", "⬟"],
};
const OTHER = ["#6f6f6f", "circle-open", "○"]; // what a newer version may know
const STATUSES = { failed: "#8c95a4", out_of_memory: "#56b4e9", inaccurate: "#e69f00", wrong: "#d55e00", crashed: "#aa3377" };

const lookOf = (algorithm) => (Object.hasOwn(ALGORITHMS, algorithm) ? ALGORITHMS[algorithm] : OTHER);

/** An element with attributes and children; a child that is no element becomes text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);

/** An algorithm's symbol in its colour. */
function glyph(algorithm) {
  const [colour, , sign] = lookOf(algorithm);
  const found = make("span", { class: "glyph", "aria-hidden": "true" }, sign);
  found.style.color = colour;
  return found;
}

/** Text for Plotly, which reads a few tags of HTML in what it draws. */
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const words = (text) => text.replaceAll("_", " ");
const known = (number) => number === number; // a number that is not known is NaN
const whole = (number) => number.toLocaleString("en-US");
const many = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
const times = (ratio) => (known(ratio) ? `${ratio >= 99.5 ? ratio.toFixed(0) : ratio.toFixed(2)}×` : "");
const small = (number) => (known(number) ? (number === Infinity ? "not finite" : number.toExponential(1)) : "");
const share = (part, digits = 0) => `${(100 * part).toFixed(digits)}%`;

/** A name in so many letters, cut in its middle: names that begin alike often differ at their ends. */
function shortened(name, most) {
  if (name.length <= most) return name;
  const end = Math.floor((most - 1) / 2);
  return `${name.slice(0, most - 1 - end)}…${end ? name.slice(-end) : ""}`;
}

/** Texts as an enumeration. */
const listed = (texts) => (texts.length > 1 ? `${texts.slice(0, -1).join(", ")} and ${texts.at(-1)}` : texts[0]);

/** A number with three digits, or as many as it has before its point. */
const digits = (number) => (number < 999.5 ? number.toPrecision(3) : whole(Math.round(number)));

/** A number in the first of the units, from the small to the large, in which it is below a thousand. */
function withUnit(number, units) {
  const [size, unit] = units.find(([each]) => number / each < 999.5) ?? units.at(-1);
  return `${digits(number / size)} ${unit}`;
}

/** Microseconds with a unit. */
const timeText = (us) => (known(us) ? withUnit(us, [[1, "µs"], [1e3, "ms"], [1e6, "s"]]) : "");

/** Work with a unit, of so many GFLOP. */
const workText = (gflop) => withUnit(gflop, [[1e-6, "kFLOP"], [1e-3, "MFLOP"], [1, "GFLOP"], [1e3, "TFLOP"]]);

/** Bytes with a unit. */
function bytesText(bytes) {
  if (!known(bytes)) return "";
  if (bytes === 0) return "0";
  const step = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([size]) => bytes >= size);
  return step ? `${(bytes / step[0]).toPrecision(3)} ${step[1]}` : `${bytes} B`;
}

/** A moment as a date. */
function dayText(seconds) {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? "unknown" : date.toISOString().slice(0, 10);
}

/** Whether the page is dark now: by its switch, else by the system's setting. */
function isDark() {
  const chosen = document.documentElement.dataset.look;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const LOOK = "autoconv-report-look"; // what was chosen, for all reports that a browser takes for one site's

/** Let the switch change the look, which is kept where a page may keep something, and tell `changed` of every change. */
function watchLook(changed) {
  let kept = null;
  try { kept = localStorage; } catch { /* pages that lie in files may have none */ }
  const chosen = kept?.getItem(LOOK);
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.look = chosen;
  const button = byId("look");
  const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    const look = isDark() ? "light" : "dark";
    document.documentElement.dataset.look = look;
    try { kept?.setItem(LOOK, look); } catch { /* full, or not to be written: it lasts for this visit */ }
    name();
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { name(); changed(); });
  name();
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
