// Values under the mouse, or under a slider that keys and fingers move.
"use strict";

function text(value, percent) {
  if (percent) return `${Number((100 * value).toPrecision(4))} %`;
  if (value && Math.abs(value) < 1e-4) {
    return Number(value.toPrecision(5)).toExponential();
  }
  if (Math.abs(value) >= 1e4) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(5)));
}

function nearest(xs, wanted) {
  let low = 0;
  let high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  const closer = low && wanted - xs[low - 1] < xs[low] - wanted;
  return closer ? low - 1 : low;
}

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart);
  if (!chart.lines.length) continue;
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const outputs = figure.querySelectorAll("output");
  const holder = figure.querySelector(".slider");
  const longest = chart.lines.reduce(
    (a, b) => (b.x.length > a.x.length ? b : a));
  const scale = chart.log ? Math.log : (value) => value;
  const low = scale(chart.low);
  const high = scale(chart.high);
  const span = chart.right - chart.left;

  const label = document.createElement("label");
  const slider = document.createElement("input");
  const told = document.createElement("span");
  slider.type = "range";
  slider.min = 0;
  slider.max = longest.x.length - 1;
  slider.value = chart.start === null
    ? slider.max : nearest(longest.x, chart.start);
  label.append(told, slider);
  holder.append(label);
  holder.hidden = false;

  function show(moved) {
    const x = longest.x[slider.value];
    const at = `${chart.label}: ${text(x, chart.percent[0])}`;
    told.textContent = at;
    const values = chart.lines.map((line, k) => {
      const value = text(line.y[nearest(line.x, x)], chart.percent[1]);
      outputs[k].textContent = value;
      return `${line.name} ${value}`;
    });
    slider.setAttribute("aria-valuetext", `${at}; ${values.join(", ")}`);
    const place = chart.left + ((scale(x) - low) / (high - low)) * span;
    cursor.setAttribute("transform", `translate(${place} 0)`);
    if (moved) cursor.style.visibility = "visible";
  }

  slider.addEventListener("input", () => show(true));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * chart.width;
    const share = Math.min(Math.max((place - chart.left) / span, 0), 1);
    const value = low + share * (high - low);
    const x = chart.log ? Math.exp(value) : value;
    slider.value = nearest(longest.x, x);
    show(true);
  });
  show(false);
}
