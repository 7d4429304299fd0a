"use strict";
// The slider of a card shows the image, ground truth, prediction or errors, and blends two of them between two stops.
for (const card of document.querySelectorAll(".card")) {
  const slider = card.querySelector("input");
  const layers = card.querySelectorAll(".layer");
  const stops = card.querySelectorAll(".stops span");
  const show = () => {
    const position = Number(slider.value);
    layers.forEach((layer, i) => {
      layer.style.opacity = Math.max(0, 1 - Math.abs(position - (i + 1)));
    });
    stops.forEach((stop, i) => stop.classList.toggle("now", i === Math.round(position)));
    const [from, to] = [stops[Math.floor(position)].textContent, stops[Math.ceil(position)].textContent];
    slider.setAttribute("aria-valuetext", from === to ? from : `between ${from} and ${to}`);
  };
  stops.forEach((stop, i) =>
    stop.addEventListener("click", () => {
      slider.value = i;
      show();
    }),
  );
  slider.addEventListener("input", show);
  show(); // browsers restore the position of a slider when a page is reloaded
}
