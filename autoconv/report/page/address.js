/* The address: what is selected and what is explained, in the page's hash, so that both can be sent, come back when the
   page is loaded again, and are gone back to: `#dtype=float16&search=3x3x3&explain=<environment>/<key>`. */

/** The values of a hash by their names; a part without one, such as a section's name, has none. */
function readHash(hash) {
  const found = new Map();
  for (const part of hash.slice(1).split("&")) {
    const [name, ...rest] = part.split("=");
    if (!rest.length) continue;
    try { found.set(name, decodeURIComponent(rest.join("="))); } catch { continue; } // an address that somebody has cut
  }
  return found;
}

/** The hash of such values, what is explained last; empty for none, without its sign. */
function hashOf(values) {
  const parts = [...values].sort(([a], [b]) => (a === "explain") - (b === "explain"));
  const text = parts.map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2F", "/")}`).join("&");
  return text && `#${text}`;
}

/** The page's address, which has values of these names: `write` changes it, and `changed` is told when something else
 * does, as the way back. */
function makeAddress(names, changed) {
  const read = () => new Map([...readHash(location.hash)].filter(([name]) => names.includes(name)));
  const address = {
    values: read(),
    /** Let these values, of which an empty one is none, stand in it: as a step that can be gone back over, or in place. */
    write(changes, { isStep = true, state = null } = {}) {
      const values = new Map(address.values);
      for (const [name, value] of Object.entries(changes)) if (value === "") values.delete(name); else values.set(name, value);
      address.values = values;
      const hash = hashOf(values);
      if (hash === hashOf(readHash(location.hash))) return;
      const where = `${location.pathname}${location.search}${hash}`;
      try {
        // What was opened and closed again looks like what is before it: the next step takes its place.
        if (isStep && !history.state?.isSpent) history.pushState(state, "", where);
        else history.replaceState(state, "", where);
      } catch (error) { // where a page may not change its address, or has done so too often, it works without one
        if (error.name !== "SecurityError") throw error;
      }
    },
  };
  const follow = () => {
    const found = read();
    if (hashOf(found) === hashOf(address.values)) return;
    address.values = found;
    changed();
  };
  addEventListener("popstate", follow);
  addEventListener("hashchange", follow);
  return address;
}

/** Let links to sections scroll to them, and leave the address to what is selected. */
function watchSections() {
  for (const link of document.querySelectorAll("nav a")) {
    const section = document.querySelector(link.getAttribute("href"));
    link.hidden = section === null || section.closest("[hidden]") !== null;
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a window of its own
      event.preventDefault();
      section.scrollIntoView();
      section.tabIndex = -1;
      section.focus({ preventScroll: true });
    });
  }
}
