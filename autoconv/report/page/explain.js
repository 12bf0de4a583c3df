/* The panel that explains one problem, and its address in the page's hash: `#explain=<environment>/<key>`. */

const PREFIX = "#explain=";
const HEADS = ["candidate", "status", "time", "spread", "vs native", "error", "workspace", "peak", "why"];

/** The panel: `open` shows a problem and puts it into the address, `follow` shows what the address says. */
function makeExplain(data) {
  const panel = byId("explain");
  const p = data.problems;
  const t = data.candidates;
  let before = null; // what had the focus

  const addressOf = (i) => `${PREFIX}${data.environments[p.environment[i]].id}/${encodeURIComponent(keyOf(data, i))}`;

  function rowOf(hash) {
    const [id, ...rest] = hash.slice(PREFIX.length).split("/");
    const environment = data.environments.findIndex((each) => each.id === id);
    let key;
    try { key = decodeURIComponent(rest.join("/")); } catch { return -1; } // an address that somebody has cut
    for (let i = 0; i < data.count; i++) if (p.environment[i] === environment && keyOf(data, i) === key) return i;
    return -1;
  }

  function candidateRow(i, c) {
    const isChosen = t.candidate[c] === p.candidate[i] && p.decided[i];
    const algorithm = data.algorithms[t.algorithm[c]];
    const parameters = data.names[t.candidate[c]].slice(algorithm.length).replace(/^\(|\)$/g, "").replaceAll(",", ", ");
    const name = make("td", {}, glyph(algorithm), " ", algorithm, parameters ? make("small", {}, parameters) : null);
    const texts = [words(data.statuses[t.status[c]]), timeText(t.us[c]), known(t.spread[c]) ? share(t.spread[c], 1) : "", times(t.speedup[c]), small(t.error[c]), bytesText(t.workspace[c]), bytesText(t.peak[c]), data.reasons[t.reason[c]]];
    return make("tr", isChosen ? { class: "chosen" } : {}, name,
      ...texts.map((text, at) => make("td", { class: at > 0 && at < 7 ? "n" : "", "data-name": HEADS[at + 1] }, text)));
  }

  function factsOf(i) {
    const environment = data.environments[p.environment[i]];
    const source = data.sources[p.source[i]];
    const [oldest, newest] = [dayText(p.oldest[i]), dayText(p.newest[i])];
    const from = source.imported.length ? `${source.name}, imported from ${source.imported.join(", ")}` : source.kind === "shipped" ? `${source.name}, which came with autoconv` : source.name;
    return [
      ["chosen", data.names[p.candidate[i]] || "nothing"], ["why", data.reasons[p.reason[i]]],
      ["kind", `${words(data.kinds[p.kind[i]])}, ${data.dtypes[p.dtype[i]]}, ${p.gflop[i].toPrecision(3)} GFLOP`],
      ["networks", data.networkSets[p.networks[i]].map(([name, count]) => (count > 1 ? `${name} (${count} times)` : name)).join(", ")],
      ["device", `${environment.identity.device}, ${environment.identity.backend}, MLX ${environment.identity.mlx}`],
      ["error at most", small(p.bound[i])],
      ["measured", `${p.runs[i] === 1 ? "1 run" : `${p.runs[i]} runs`}, ${oldest === newest ? oldest : `${oldest} to ${newest}`}, autoconv ${data.libraries[p.libraries[i]]}`],
      ["from", from],
    ].filter(([, text]) => text !== "");
  }

  function copier(text, code) {
    const button = make("button", { type: "button", onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch { // no clipboard for a page that lies in a file: it is selected instead
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
    } }, "Copy");
    return button;
  }

  function show(i) {
    const command = commandOf(data, i);
    const code = make("code", { id: "command" }, command);
    const rows = [];
    for (let c = p.first[i]; c < data.ends(i); c++) rows.push(candidateRow(i, c));
    panel.replaceChildren(
      make("header", {}, make("h2", { id: "explain-title" }, labelOf(data, i)), make("button", { type: "button", class: "close", "aria-label": "Close", onclick: close }, "Close")),
      make("dl", {}, ...factsOf(i).flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])),
      make("p", { class: "muted" }, "The same on a machine of your own, with its database:"),
      make("div", { class: "command" }, code, copier(command, code)),
      make("div", { class: "scroll" }, make("table", { id: "candidates" },
        make("thead", {}, make("tr", {}, ...HEADS.map((name, at) => make("th", at > 1 && at < 8 ? { class: "n" } : {}, name)))), make("tbody", {}, ...rows))),
    );
    panel.dataset.row = i;
    if (panel.hidden) before = document.activeElement;
    panel.hidden = false;
    panel.scrollTop = 0;
    panel.querySelector(".close").focus();
  }

  function close() {
    panel.hidden = true;
    if (location.hash.startsWith(PREFIX)) history.replaceState(null, "", "#");
    before?.focus?.();
  }

  function follow() {
    if (!location.hash.startsWith(PREFIX)) { panel.hidden = true; return; }
    const i = rowOf(location.hash);
    if (i >= 0) show(i);
  }

  addEventListener("keydown", (event) => { if (event.key === "Escape" && !panel.hidden) close(); });
  addEventListener("hashchange", follow);
  return { follow, open: (i) => { location.hash = addressOf(i); } };
}
