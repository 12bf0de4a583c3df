/* The filter: what is selected, and who is told when that changes. */

const SELECTS = [
  ["network", "Network"], ["environment", "Device"], ["dtype", "dtype"], ["kind", "Kind"], ["kernel", "Kernel"],
  ["winner", "Winner"], ["algorithm", "Tried"], ["source", "Source"],
];

const LONG = new Set(["network", "environment"]);

/** A filter over the data. `rows` are the numbers of the problems that pass; `set` changes it and tells `changed`. */
function makeFilter(data, changed) {
  const state = { network: "", environment: "", dtype: "", kind: "", kernel: "", winner: "", algorithm: "", source: "", least: "", most: "", search: "" };
  const usual = { ...state };
  const p = data.problems;
  const texts = new Array(data.count);
  const deviceNames = data.environments.map((e) => `${e.identity.device} · ${e.identity.backend} · MLX ${e.identity.mlx}`);
  const sourceNames = data.sources.map((s) => s.imported.length ? `${s.name}, imported ${s.imported.join(", ")}` : `${s.name} (${s.kind})`);

  /** What is searched in, in lower case; made when it is first needed. */
  function textOf(i) {
    texts[i] ??= [
      keyOf(data, i), labelOf(data, i), data.names[p.candidate[i]], data.networks[p.networks[i]],
      deviceNames[p.environment[i]], sourceNames[p.source[i]],
    ].join(" ").toLowerCase();
    return texts[i];
  }

  /** Whether some candidate of an algorithm was tried on a problem. */
  function tried(i, algorithm) {
    for (let c = p.first[i]; c < data.ends(i); c++) if (data.candidates.algorithm[c] === algorithm) return true;
    return false;
  }

  function passing() {
    const number = (list, value) => (value === "" ? -1 : list.indexOf(value));
    const sets = state.network === "" ? null : data.networkSets.map((set) => set.some(([name]) => name === state.network));
    const environment = state.environment === "" ? -1 : Number(state.environment);
    const source = state.source === "" ? -1 : Number(state.source);
    const dtype = number(data.dtypes, state.dtype);
    const kind = number(data.kinds, state.kind);
    const kernel = number(data.kernels, state.kernel);
    const winner = number(data.algorithms, state.winner);
    const algorithm = number(data.algorithms, state.algorithm);
    const least = state.least === "" ? NaN : Number(state.least);
    const most = state.most === "" ? NaN : Number(state.most);
    const parts = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const found = new Uint32Array(data.count);
    let count = 0;
    for (let i = 0; i < data.count; i++) {
      if (sets && !sets[p.networks[i]]) continue;
      if (environment >= 0 && p.environment[i] !== environment) continue;
      if (source >= 0 && p.source[i] !== source) continue;
      if (dtype >= 0 && p.dtype[i] !== dtype) continue;
      if (kind >= 0 && p.kind[i] !== kind) continue;
      if (kernel >= 0 && data.kernelOf[i] !== kernel) continue;
      if (winner >= 0 && p.algorithm[i] !== winner) continue;
      if (algorithm >= 0 && !tried(i, algorithm)) continue;
      if (known(least) && !(p.speedup[i] >= least)) continue;
      if (known(most) && !(p.speedup[i] <= most)) continue;
      if (parts.length && !parts.every((part) => textOf(i).includes(part))) continue;
      found[count++] = i;
    }
    return found.subarray(0, count);
  }

  const filter = {
    state,
    rows: passing(),
    deviceNames,
    sourceNames,
    set(changes) {
      Object.assign(state, changes);
      filter.rows = passing();
      changed();
    },
    clear() { filter.set(usual); },
    isSet: (name) => state[name] !== "",
  };
  return filter;
}

/** The filter's controls, which follow it and it them. */
function makeFilterForm(data, filter) {
  const form = byId("filters");
  const counted = (column, names) => {
    const counts = new Array(names.length).fill(0);
    for (const value of column) counts[value]++;
    return names.map((name, i) => [name, name, counts[i]]).filter(([name, , count]) => name !== "" && count);
  };
  const p = data.problems;
  const byCount = (options) => options.sort((a, b) => b[2] - a[2]);
  const networks = new Map();
  for (const set of p.networks) for (const [name] of data.networkSets[set]) networks.set(name, (networks.get(name) ?? 0) + 1);
  const triedCounts = counted(data.candidates.algorithm, data.algorithms);
  const options = {
    network: [...networks].map(([name, count]) => [name, name, count]).sort((a, b) => data.isOwn(b[0]) - data.isOwn(a[0]) || a[0].localeCompare(b[0])),
    environment: counted(p.environment, data.environments.map((_, i) => String(i))).map(([i, , n]) => [i, filter.deviceNames[i], n]),
    dtype: byCount(counted(p.dtype, data.dtypes)),
    kind: byCount(counted(p.kind, data.kinds)),
    kernel: byCount(counted(data.kernelOf, data.kernels)),
    winner: byCount(counted(p.algorithm, data.algorithms)),
    algorithm: triedCounts.map(([name]) => [name, name, 0]),
    source: counted(p.source, data.sources.map((_, i) => String(i))).map(([i, , n]) => [i, filter.sourceNames[i], n]),
  };
  const fields = {};
  for (const [name, title] of SELECTS) {
    const select = make("select", { name, onchange: () => filter.set({ [name]: select.value }) }, make("option", { value: "" }, "all"));
    for (const [value, text, count] of options[name]) {
      select.append(make("option", { value }, `${name === "kind" ? words(text) : text}${count ? ` (${whole(count)})` : ""}`));
    }
    fields[name] = select;
    form.append(make("label", LONG.has(name) ? { class: "long" } : {}, title, select));
  }
  let waiting = 0;
  const typed = (name, attributes) => {
    const input = make("input", { name, ...attributes, oninput: () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => filter.set({ [name]: input.value.trim() }), 150);
    } });
    fields[name] = input;
    return input;
  };
  const number = { type: "number", min: "0", step: "any", inputmode: "decimal" };
  form.append(make("label", {}, "Speed-up, from and to", make("span", { class: "range" },
    typed("least", { ...number, placeholder: "from", "aria-label": "Least speed-up" }),
    typed("most", { ...number, placeholder: "to", "aria-label": "Greatest speed-up" }))));
  form.append(make("label", { class: "long" }, "Search", typed("search", { type: "search", placeholder: "shape, layer, winner" })));
  form.append(make("button", { type: "button", id: "reset", class: "short", onclick: () => filter.clear() }, "Reset"));
  form.addEventListener("submit", (event) => event.preventDefault());
  return () => {
    for (const [name, field] of Object.entries(fields)) {
      if (document.activeElement !== field) field.value = filter.state[name];
      field.parentElement.classList.toggle("set", filter.isSet(name));
    }
    byId("count").textContent = `${whole(filter.rows.length)} of ${whole(data.count)} problems`;
  };
}
