/* The page: puts its parts together, and draws them anew when the filter or the look changes. */

const KINDS = { own: "measured here", imported: "imported", file: "from files", shipped: "came with autoconv" };

/** How many of these problems came from where, in words, the user's own first: [[4, "measured here"], ...]. */
function kindsOf(data, rows) {
  const counts = new Map(Object.keys(KINDS).map((kind) => [kind, 0]));
  for (const i of rows) { const { kind } = data.sources[data.problems.source[i]]; counts.set(kind, (counts.get(kind) ?? 0) + 1); }
  return [...counts].filter(([, count]) => count).map(([kind, count]) => [count, KINDS[kind] ?? kind]);
}

/** A line on whose rows these are, where some are the user's own and others are not, and a switch to their own alone. */
function drawMix(data, filter) {
  const line = byId("mix");
  line.hidden = !data.hasOthers;
  if (line.hidden) return;
  const kinds = kindsOf(data, data.problems.source.keys());
  const own = data.sources.findIndex((source) => source.kind === "own");
  const isOn = own >= 0 && filter.state.source === String(own);
  const told = kinds.map(([count, where]) => `${whole(count)} ${where}`).join(", ");
  const first = data.own.length ? listed(data.own.length > 3 ? [`${data.own.length} networks of yours`] : data.own) : "what was measured here";
  line.replaceChildren(`${kinds.length > 1 ? `${many(data.count, "problem")}: ${told}. ` : ""}The table begins with ${first}. `, ...(own >= 0 && kinds.length > 1 ? [make("button", { type: "button", "aria-pressed": String(isOn), onclick: () => filter.set({ source: isOn ? "" : String(own) }) }, "Show only what was measured here")] : []));
}

/** The figures at the top, of the problems that pass. */
function drawTiles(data, filter) {
  const p = data.problems;
  let faster = 0;
  let cannot = 0;
  let logs = 0;
  let compared = 0;
  let most = 1;
  let failed = 0;
  for (const i of filter.rows) {
    if (!p.accurate[i]) { failed++; continue; }
    if (!known(p.native_us[i])) { cannot++; continue; }
    if (!known(p.speedup[i])) continue;
    compared++;
    logs += Math.log(p.speedup[i]);
    most = Math.max(most, p.speedup[i]);
    if (p.algorithm[i] !== data.native) faster++;
  }
  const all = gainsOf(data, filter).filter((sum) => sum.name !== data.others);
  const mine = all.filter((sum) => data.isOwn(sum.name));
  const part = isPart(filter) ? ", of the problems that pass the filter" : "";
  const named = mine.length ? mine : all; // those known by their shapes share problems with the user's own
  const before = named.reduce((sum, each) => sum + each.before, 0);
  const after = named.reduce((sum, each) => sum + each.after, 0);
  // That tile is of the user's own where there are some: where there are others too, each says which it is of.
  const scope = mine.length && filter.rows.some((i) => !data.isMine(i)) ? ", yours and others" : "";
  const kinds = kindsOf(data, filter.rows);
  const note = [...(filter.rows.length < data.count ? [`of ${whole(data.count)} in this report`] : []), ...(kinds.length > 1 ? kinds.map(([count, where]) => `${whole(count)} ${where}`) : [])];
  const tiles = [
    ["Problems", whole(filter.rows.length), note.join(", ") || "in this report"],
    ["Gain on networks", after ? times(before / after) : "–", named.length ? `time-weighted, ${named.length === 1 ? `${named[0].name}${scope && " (yours)"}` : `${whole(named.length)} networks${mine.length ? " of yours" : ""}`}${part}` : "no known network"],
    ["Gain on a problem", compared ? times(Math.exp(logs / compared)) : "–", `geometric mean${scope}`],
    ["Another than native", compared ? share(faster / compared) : "–", `of ${whole(compared)} that can be compared${scope}`],
    ["Most", compared ? times(most) : "–", `as fast as native${scope}`],
    ["Native cannot", whole(cannot), failed ? `another way can; on ${whole(failed)} no way is accurate${scope}` : `another way can${scope}`],
  ];
  byId("tiles").replaceChildren(...tiles.map(([name, value, note]) => make("div", {}, make("dt", {}, name), make("dd", {}, value), make("dd", {}, note))));
}

/** The algorithms with their colours, in an order that stays; one selects what it won. What is returned follows the filter. */
function makeLegend(data, filter) {
  const winsOf = (rows) => {
    const wins = new Array(data.algorithms.length).fill(0);
    for (const i of rows) wins[data.problems.algorithm[i]]++;
    return wins;
  };
  const wins = winsOf(data.problems.algorithm.keys());
  const chips = [...new Set(data.candidates.algorithm)].sort((a, b) => wins[b] - wins[a]).map((algorithm) => {
    const name = data.algorithms[algorithm];
    const count = make("span", { class: "muted" });
    const button = make("button", { type: "button", title: "Show what it wins", onclick: () => filter.set({ winner: filter.state.winner === name ? "" : name }) }, glyph(name), name, count);
    return { algorithm, name, count, button };
  });
  byId("legend").replaceChildren(...chips.map(({ button }) => make("li", {}, button)));
  return () => {
    const now = winsOf(filter.rows);
    for (const { algorithm, name, count, button } of chips) {
      count.textContent = whole(now[algorithm]);
      button.setAttribute("aria-pressed", String(filter.state.winner === name));
    }
  };
}

/** Where rows came from: files, with what they hold. */
function drawSources(data) {
  const p = data.problems;
  const found = new Map();
  for (let i = 0; i < data.count; i++) {
    const at = `${p.source[i]} ${p.environment[i]}`;
    const sum = found.get(at) ?? found.set(at, { source: data.sources[p.source[i]], environment: data.environments[p.environment[i]], problems: 0, results: 0, runs: 0, oldest: Infinity, newest: -Infinity, libraries: new Set() }).get(at);
    sum.problems++;
    sum.results += data.ends(i) - p.first[i];
    sum.runs += p.runs[i];
    sum.oldest = Math.min(sum.oldest, p.oldest[i]);
    sum.newest = Math.max(sum.newest, p.newest[i]);
    sum.libraries.add(data.libraries[p.libraries[i]]);
  }
  const head = [["file", ""], ["kind", ""], ["device", ""], ["problems", "n"], ["runs", "n"], ["results", "n"], ["measured", ""], ["autoconv", ""]];
  byId("sources").replaceChildren(make("thead", {}, make("tr", {}, ...head.map(([name, style]) => make("th", { class: style }, name)))), make("tbody", {}, ...[...found.values()].map((sum) => {
    const days = [...new Set([dayText(sum.oldest), dayText(sum.newest)])].join(" to ");
    const kind = sum.source.imported.length ? `imported from ${sum.source.imported.join(", ")}` : { ...KINDS, file: "a file" }[sum.source.kind] ?? sum.source.kind;
    const { identity } = sum.environment;
    const texts = [sum.source.name, kind, `${identity.device}, ${identity.backend}, MLX ${identity.mlx}`, whole(sum.problems), whole(sum.runs), whole(sum.results), days, [...sum.libraries].join(", ")];
    return make("tr", {}, ...texts.map((text, at) => make("td", { class: head[at][1], "data-name": head[at][0] }, text)));
  })));
}

/** What to do where nothing was measured. */
function showEmpty() {
  const page = byId("empty");
  const commands = (...texts) => texts.map((text) => make("code", {}, text));
  page.append(make("h1", {}, "Nothing was measured yet"),
    make("p", {}, "Note what a program of yours convolves, time it, and make this page again:"),
    ...commands("autoconv run --policy record -- program.py", "autoconv sweep --pending", "autoconv report out.html"),
    make("p", {}, "Or time layers of known networks first:"), ...commands("autoconv demo", "autoconv sweep wan21 --time-limit 30m"),
    make("p", {}, "Or show a file:"), ...commands("autoconv report out.html --database FILE.db"));
  page.hidden = false;
}

function drawHead(data, about) {
  const [first, ...more] = data.environments;
  const devices = [...new Set(data.environments.map((each) => each.identity.device))];
  byId("device").textContent = devices.length > 3 ? `${devices.slice(0, 2).join(", ")} and ${devices.length - 2} others` : devices.join(", ");
  const settings = Object.entries(first.identity).filter(([name]) => !["device", "backend", "architecture", "mlx"].includes(name));
  byId("circumstances").textContent = more.length ? `${data.environments.length} environments; accuracy ${about.accuracy}` : [
    `${first.identity.backend} ${first.identity.architecture ?? ""}`, `MLX ${first.identity.mlx}`, ...settings.map(([name, value]) => `${words(name)} ${value}`),
    ...["os", "driver", "cudnn"].filter((name) => name in first.circumstances).map((name) => (name === "os" ? first.circumstances[name] : `${name} ${first.circumstances[name]}`)), `accuracy ${about.accuracy}`].join(" · ");
  document.title = `autoconv report: ${byId("device").textContent}`;
  byId("made").textContent = `Made ${about.made} by autoconv ${about.version}. Decisions are those that calls make with this accuracy and memory limit. The page holds all it shows.`;
}

/** When all of the page was read, Plotly's script at its end too: the data are unpacked meanwhile. */
const read = () => new Promise((resolve) => { if (document.readyState === "loading") addEventListener("DOMContentLoaded", resolve); else resolve(); });

async function main() {
  const about = JSON.parse(byId("about").textContent);
  const [data] = await Promise.all([load(), read()]);
  byId("loading").remove();
  const page = { draw() {} };
  watchLook(() => page.draw());
  if (!data.count) {
    showEmpty();
    watchSections();
    document.documentElement.dataset.ready = "empty";
    return;
  }
  byId("main").hidden = false;
  let turn = 0;
  /** Draw what is in sight, and let all else be drawn when it comes near; `ready` says when that was seen. */
  page.draw = async (isRestored = false) => {
    const mine = ++turn;
    delete document.documentElement.dataset.ready;
    drawMix(data, filter);
    drawTiles(data, filter);
    followLegend();
    follow(isRestored);
    table.draw();
    drawer.change();
    await drawer.drawNear();
    await painted();
    if (mine === turn) document.documentElement.dataset.ready = String(Math.round(performance.now()));
  };
  const filter = makeFilter(data, (isStep) => {
    address.write(filter.values, { isStep });
    page.draw();
  });
  const address = makeAddress([...Object.keys(filter.state), "explain"], () => {
    const isAnother = filter.restore(address.values);
    explain.follow();
    drop();
    if (isAnother) page.draw(true);
  });
  /** Let the address say no more than what was found. */
  const drop = () => address.write(filter.values, { isStep: false, state: history.state });
  filter.restore(address.values);
  const explain = makeExplain({ data, address, refocus: (i) => table.refocus(i) });
  const context = { data, filter, open: explain.open, redraw: (figure) => drawer.drawNow(figure) };
  const table = makeTable(context);
  const follow = makeFilterForm(data, filter);
  const followLegend = makeLegend(data, filter);
  const measured = [gainsFigure, mapFigure, speedupFigure, accuracyFigure, memoryFigure].map((of) => of(context));
  const model = modelSection(context);
  const failures = failuresFigure(context);
  const figures = [...measured, ...(model?.figures ?? []), failures];
  byId("figures").append(...measured.map((figure) => figure.element), ...(model ? [model.element] : []), failures.element);
  const drawer = makeDrawer(figures);
  if (innerWidth <= 860) byId("filters-box").open = false;
  drawHead(data, about);
  drawSources(data);
  watchSections();
  watchPaper({ table, figures, drawer });
  explain.follow();
  drop();
  let width = innerWidth;
  addEventListener("resize", () => { if ((width <= 860) !== (innerWidth <= 860)) { width = innerWidth; page.draw(); } });
  await page.draw(true);
  if (!address.values.size && location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView(); // it was hidden until now
}

main().catch((error) => {
  const line = byId("loading") ?? document.body.appendChild(make("p", { class: "loading" }));
  line.textContent = `This page could not be drawn: ${error.message}. A newer browser may help.`;
  document.documentElement.dataset.ready = "failed";
  throw error;
});
