/* Paper: the page in light colours, as wide as a sheet, without what only a screen can do. */

const MOST_PRINTED = 50;

const isPaper = () => document.documentElement.dataset.paper !== undefined;

/** Draw for paper before the page is printed, and for the screen again after. Browsers wait for no promise there. */
function watchPaper({ table, figures, drawer }) {
  const root = document.documentElement;
  // Plotly measures a plot's place when it is first drawn, and after that only when it is asked to.
  const resize = ({ place }, size) => { if (place.dataset.drawn === "plot") Plotly.relayout(place, size); };
  addEventListener("beforeprint", () => {
    root.dataset.paper = "";
    byId("printed").replaceChildren(...table.printed(MOST_PRINTED));
    for (const figure of figures) {
      drawer.drawNow(figure);
      resize(figure, { width: figure.place.clientWidth, height: figure.place.clientHeight });
    }
  });
  addEventListener("afterprint", () => {
    delete root.dataset.paper;
    byId("printed").replaceChildren();
    for (const figure of figures) {
      resize(figure, { autosize: true, width: null, height: null });
      drawer.drawNow(figure);
    }
  });
}
