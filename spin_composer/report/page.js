// Of the report's page: values under the pointer, zoom, and the samples' filter and order.
"use strict";
(() => {
  document.body.classList.add("has-script");
  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const numbers = (text) => (text ? text.split(" ").map(Number) : []);
  const short = (value) => String(Number(value.toPrecision(5)));

  // As in plot.py.
  const roundStep = (least) => {
    const power = 10 ** Math.floor(Math.log10(least));
    return power * [1, 2, 5, 10].find((factor) => factor * power >= least * (1 - 1e-9));
  };
  const padded = (values, share) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    if (!(high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)))) {
      if (low === Infinity) return [0, 1];
      const around = Math.abs(low) / 10 || 1;
      return [low - around, high + around];
    }
    return [low - share * (high - low), high + share * (high - low)];
  };
  const ticks = (low, high, whole) => {
    let step = roundStep((high - low) / 6);
    if (whole) step = Math.max(1, step);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k++)
      found.push(Number((k * step).toPrecision(6)));
    return found;
  };

  class Panel {
    constructor(figure) {
      this.svg = figure.querySelector("svg");
      this.output = figure.querySelector("output");
      this.box = {};
      for (const key of ["left", "top", "width", "height"]) this.box[key] = Number(this.svg.dataset[key]);
      this.curves = [...this.svg.querySelectorAll(".curve")].map((group) => ({
        group, label: group.dataset.label, xs: numbers(group.dataset.x), ys: numbers(group.dataset.y),
      }));
      this.borders = this.svg.querySelector(".borders");
      this.borderXs = numbers(this.borders.dataset.at);
    }
    placeX(x) { return this.box.left + ((x - this.low) / (this.high - this.low)) * this.box.width; }
    valueAt(event) {
      const frame = this.svg.getBoundingClientRect();
      const at = ((event.clientX - frame.left) / frame.width) * this.svg.viewBox.baseVal.width;
      const share = (at - this.box.left) / this.box.width;
      return this.low + Math.min(1, Math.max(0, share)) * (this.high - this.low);
    }
    draw(low, high) {
      Object.assign(this, { low, high });
      const { left, top, width, height } = this.box;
      const seen = this.curves.map(({ xs, ys }) => {
        let first = xs.findIndex((x) => x >= low), last = xs.length - 1;
        while (last >= 0 && xs[last] > high) last--;
        if (first < 0) first = xs.length;
        return { xs: xs.slice(first, last + 1), ys: ys.slice(first, last + 1) };
      });
      const [bottom, most] = padded(seen.flatMap((curve) => curve.ys), 0.05);
      const placeY = (y) => top + height - ((y - bottom) / (most - bottom)) * height;
      this.curves.forEach((curve, k) => {
        const places = seen[k].xs.map((x, i) => [this.placeX(x).toFixed(2), placeY(seen[k].ys[i]).toFixed(2)]);
        const line = make("polyline", { points: places.map((place) => place.join(",")).join(" ") });
        const dots = places.length > 60 ? [] : places.map(([cx, cy]) => make("circle", { cx, cy, r: 2.2 }));
        curve.group.replaceChildren(line, ...dots);
      });
      const marks = this.svg.querySelector(".ticks");
      marks.replaceChildren();
      for (const y of ticks(bottom, most, false)) {
        const at = placeY(y);
        marks.append(make("line", { x1: left, x2: left + width, y1: at, y2: at }));
        marks.append(make("text", { class: "y", x: left - 5, y: at }, y));
      }
      for (const x of ticks(low, high, true))
        marks.append(make("text", { class: "x", x: this.placeX(x), y: top + height + 16 }, x));
      this.borders.replaceChildren();
      this.borderXs.forEach((x, k) => {
        if (x < low || x > high) return;
        const at = this.placeX(x);
        this.borders.append(make("line", { x1: at, x2: at, y1: top, y2: top + height }));
        this.borders.append(make("text", { x: at, y: top - 4 }, k));
      });
    }
    show(x) {
      const found = this.curves.filter((curve) => curve.xs.length).map((curve) => {
        let best = 0;
        curve.xs.forEach((at, i) => { if (Math.abs(at - x) < Math.abs(curve.xs[best] - x)) best = i; });
        return { at: curve.xs[best], text: `${curve.label} ${short(curve.ys[best])}` };
      });
      if (!found.length) return;
      this.hide();
      const { top, height } = this.box, at = this.placeX(found[0].at);
      this.svg.append(make("line", { class: "cursor", x1: at, x2: at, y1: top, y2: top + height }));
      this.output.textContent = `at ${found[0].at}: ${found.map((one) => one.text).join(", ")}`;
    }
    hide() {
      this.svg.querySelector(".cursor")?.remove();
      this.output.textContent = "";
    }
    choose(from, to) {
      this.svg.querySelector(".chosen")?.remove();
      if (from === null) return;
      const [a, b] = [this.placeX(Math.min(from, to)), this.placeX(Math.max(from, to))];
      this.svg.append(make("rect", { class: "chosen", x: a, width: b - a, y: this.box.top, height: this.box.height }));
    }
  }

  const panels = [...document.querySelectorAll(".panel")].map((figure) => new Panel(figure));
  const whole = padded(panels.flatMap((panel) => panel.curves.flatMap((curve) => curve.xs)), 0);
  const zoom = (low, high) => panels.forEach((panel) => panel.draw(low, high));
  for (const panel of panels) {
    Object.assign(panel, { low: whole[0], high: whole[1] });
    let from = null;
    panel.svg.addEventListener("pointerdown", (event) => { from = panel.valueAt(event); });
    panel.svg.addEventListener("pointermove", (event) => {
      const x = panel.valueAt(event);
      if (from !== null && event.buttons) panel.choose(from, x);
      panel.show(x);
    });
    panel.svg.addEventListener("pointerup", (event) => {
      const to = panel.valueAt(event), far = Math.abs(to - from) > (panel.high - panel.low) / 50;
      if (from !== null && far) zoom(Math.min(from, to), Math.max(from, to));
      panel.choose(null);
      from = null;
    });
    panel.svg.addEventListener("pointerleave", () => { panel.hide(); panel.choose(null); from = null; });
    panel.svg.addEventListener("dblclick", () => zoom(...whole));
  }

  const form = document.querySelector(".controls"), rows = document.getElementById("rows");
  if (!form) return;
  const all = [...rows.children];
  const arrange = () => {
    const { iteration, order, shade } = form.elements;
    const sign = { up: 1, down: -1 }[order.value] || 0;
    const margin = (row) => (row.dataset.margin ? Number(row.dataset.margin) * sign : Infinity);
    rows.append(...(sign ? [...all].sort((a, b) => margin(a) - margin(b)) : all));
    for (const row of all) row.hidden = iteration.value !== "" && row.dataset.iteration !== iteration.value;
    if (shade) rows.className = `by-${shade.value}`;
  };
  form.addEventListener("change", arrange);
  arrange();
})();
