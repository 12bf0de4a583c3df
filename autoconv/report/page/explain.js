/* The panel that explains one problem, which the address names: `explain=<environment>/<key>`. */

const HEADS = ["candidate", "status", "time", "spread", "vs native", "error", "workspace", "peak", "why"];
const TOLD = {
  time: "The median of all samples, the first included, which a cold start may slow",
  spread: "The median absolute deviation of these samples, over the median",
  "vs native": "The median ratio of native's samples to its own, of the samples that judge",
};
const RATIOS = "A time is the median of all samples. “vs native” rests on those that judge, every second one, which had no say in the choice: it is the median ratio of native's to the candidate's, of several runs within each. So it need not be the quotient of the two times: where the median of those that judge is over 5% off that of all, it is told as “judged”, as where the first of two samples had a cold start. “Given up” compares the samples taken until then with the best's until then.";

/** The panel: `open` shows a problem and puts it into the address, `follow` shows what the address says. Closed, it
 * gives the focus back; `refocus` is told of a row that had it. */
function makeExplain({ data, address, refocus }) {
  const panel = byId("explain");
  const p = data.problems;
  const t = data.candidates;
  let before = null; // what had the focus

  const nameOf = (i) => `${data.environments[p.environment[i]].id}/${keyOf(data, i)}`;

  function rowOf(name) {
    const [id, ...rest] = name.split("/");
    const environment = data.environments.findIndex((each) => each.id === id);
    const key = rest.join("/");
    for (let i = 0; i < data.count; i++) if (p.environment[i] === environment && keyOf(data, i) === key) return i;
    return -1;
  }

  function candidateRow(i, c) {
    const isChosen = t.candidate[c] === p.candidate[i] && p.decided[i];
    const algorithm = data.algorithms[t.algorithm[c]];
    const parameters = data.names[t.candidate[c]].slice(algorithm.length).replace(/^\(|\)$/g, "").replaceAll(",", ", ");
    const name = make("td", {}, glyph(algorithm), " ", algorithm, parameters ? make("small", {}, parameters) : null);
    const time = known(t.judged[c]) ? make("span", {}, timeText(t.us[c]), make("small", {}, `judged ${timeText(t.judged[c])}`)) : timeText(t.us[c]);
    const texts = [words(data.statuses[t.status[c]]), time, known(t.spread[c]) ? share(t.spread[c], 1) : "", times(t.speedup[c]), small(t.error[c]), bytesText(t.workspace[c]), bytesText(t.peak[c]), data.reasons[t.reason[c]]];
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
      ["kind", `${words(data.kinds[p.kind[i]])}, ${data.dtypes[p.dtype[i]]}, ${workText(p.gflop[i])}`],
      ["networks", data.networkSets[p.networks[i]].map(([name, count]) => (count > 1 ? `${name} (${count} times)` : name)).join(", ")],
      ["device", `${environment.identity.device}, ${environment.identity.backend}, MLX ${environment.identity.mlx}`],
      ["error at most", small(p.bound[i])],
      ["measured", `${many(p.runs[i], "run")}, ${oldest === newest ? oldest : `${oldest} to ${newest}`}, autoconv ${data.libraries[p.libraries[i]]}`],
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
      make("div", { class: "scroll" }, make("table", { id: "candidates", class: "blocks" },
        make("thead", {}, make("tr", {}, ...HEADS.map((name, at) => make("th", { class: at > 1 && at < 8 ? "n" : undefined, title: TOLD[name] }, name)))), make("tbody", {}, ...rows))),
      make("p", { class: "muted", id: "ratios" }, RATIOS),
    );
    panel.dataset.row = i;
    if (panel.hidden) before = document.activeElement;
    panel.hidden = false;
    panel.scrollTop = 0;
    panel.querySelector(".close").focus();
  }

  function hide() {
    if (panel.hidden) return;
    panel.hidden = true;
    if (before?.isConnected) before.focus();
    else if (before?.dataset.row !== undefined) refocus(Number(before.dataset.row)); // the table has made it anew
  }

  function close() {
    hide();
    address.write({ explain: "" }, { isStep: false, state: { isSpent: Boolean(history.state?.isOpened) } });
  }

  function follow() {
    const name = address.values.get("explain");
    const i = name === undefined ? -1 : rowOf(name);
    if (i < 0) { address.values.delete("explain"); hide(); } // what nothing is called is forgotten
    else if (panel.hidden || Number(panel.dataset.row) !== i) show(i);
  }

  function open(i) {
    const isOpened = panel.hidden;
    show(i);
    address.write({ explain: nameOf(i) }, { state: { isOpened } });
  }

  addEventListener("keydown", (event) => { if (event.key === "Escape" && !panel.hidden) close(); });
  return { follow, open };
}
