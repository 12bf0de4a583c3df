/* A figure: what every plot is made of, and when it is drawn. */

const MOST_SVG = 4000; // points past which WebGL draws them, where there is any
const MOST_GL = 10000; // points past which some are left out, evenly, and that is said
const HEIGHT = 340; // of a plot whose contents ask for no other
const NONE = 110; // of what says that there is none
const NEAR = 150; // pixels out of sight at which a figure is drawn already

let gl = null;

/** Whether WebGL draws here: without a graphics driver it may not. Asking takes a while, and is done once. */
function hasGl() {
  if (gl === null) {
    const context = document.createElement("canvas").getContext("webgl");
    context?.getExtension("WEBGL_lose_context")?.loseContext();
    gl = context !== null;
  }
  return gl;
}

const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false, doubleClick: "reset" };

/** A figure: title, a line that `draw` may fill, controls, and a place for the plot. */
function makeFigure(id, title, { wide = false, controls = [] } = {}) {
  const said = make("p");
  const place = make("div", { class: "plot", id: `${id}-plot` });
  const element = make("figure", { class: wide ? "card wide" : "card", id },
    make("figcaption", {}, make("h2", {}, title), said),
    ...(controls.length ? [make("div", { class: "controls" }, ...controls)] : []), place);
  return {
    id, element, place, say: (text) => { said.textContent = text; },
    /** Make the place as high as what it is to hold. */
    fit: (height) => { place.style.setProperty("--height", `${height}px`); },
  };
}

/** When what was drawn until now is seen. */
const painted = () => new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve, 0)); });
const pause = () => new Promise((resolve) => { setTimeout(resolve, 0); });

/** Draws figures when they come near to what is in sight, each once after every change: painting takes longer than all else. */
function makeDrawer(figures) {
  const stale = new Set();
  let going = null;

  function drawNow(figure) {
    stale.delete(figure);
    figure.draw();
    delete figure.element.dataset.stale;
  }

  function isNear({ element }) {
    const { top, bottom } = element.getBoundingClientRect();
    return bottom > -NEAR && top < innerHeight + NEAR;
  }

  /** Draw what is near, one after another, so that the first is seen at once. */
  async function pump() {
    for (let next; (next = figures.find((figure) => stale.has(figure) && isNear(figure)));) {
      drawNow(next);
      await pause();
    }
  }

  const drawer = {
    /** All of them changed: what is not near is drawn when it comes near. */
    change() {
      for (const figure of figures) {
        stale.add(figure);
        figure.element.dataset.stale = "";
        figure.prepare?.();
      }
    },
    drawNear: () => (going ??= pump().finally(() => { going = null; })),
    drawNow,
  };
  const observer = new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) drawer.drawNear(); }, { rootMargin: `${NEAR}px 0px` });
  for (const { element } of figures) observer.observe(element);
  return drawer;
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

/** Draw a plot, and bind what hovering tells and clicking does, both given the point; or say why there is none. */
function draw(figure, traces, layout, { tell, open, none = "Nothing passes the filter." } = {}) {
  const { place } = figure;
  if (!traces.some((trace) => trace.x.length)) {
    Plotly.purge(place);
    figure.fit(NONE);
    place.replaceChildren(make("div", { class: "none" }, none));
    place.dataset.drawn = "none";
    return;
  }
  if (place.dataset.drawn !== "plot") place.replaceChildren();
  figure.fit(layout.height ?? HEIGHT);
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

/** A number between -1 and 1 that a row always has: what lies on one another is moved apart by it. */
const shift = (i, salt) => { const x = Math.sin(i * 12.9898 + salt * 78.233) * 43758.5453; return 2 * (x - Math.floor(x)) - 1; };

/** Points of many algorithms, a trace each. Of too many numbers some are left out, evenly; `at` makes [x, y] of one. */
function scatter(data, numbers, algorithm, at, marker = {}) {
  const type = numbers.length > MOST_SVG && hasGl() ? "scattergl" : "scatter";
  const most = type === "scattergl" ? MOST_GL : MOST_SVG;
  const count = Math.min(numbers.length, most);
  const traces = data.algorithms.map((name) => ({ name, x: [], y: [], customdata: [] }));
  for (let k = 0; k < count; k++) {
    const number = numbers[Math.floor((k * numbers.length) / count)];
    const trace = traces[algorithm[number]];
    const [x, y] = at(number);
    trace.x.push(x); trace.y.push(y); trace.customdata.push(number);
  }
  const shown = traces.filter((trace) => trace.x.length).map(({ name, ...trace }) => ({
    ...trace, type, name: plain(name), mode: "markers",
    marker: { color: lookOf(name)[0], symbol: lookOf(name)[1], size: 7, opacity: 0.72, ...marker },
  }));
  // What is many lies beneath what is few.
  shown.sort((a, b) => b.x.length - a.x.length);
  return { traces: shown, left: count < numbers.length ? `; ${whole(count)} of them are drawn, a filter shows more` : "" };
}

