"use strict";
// The slider of a card goes from the image over truth and prediction to the errors; between two stops it blends them.
for (const card of document.querySelectorAll(".card")) {
  const slider = card.querySelector("input");
  const layers = card.querySelectorAll(".layer");
  const stops = card.querySelectorAll(".stops span");
  const show = () => {
    const at = Number(slider.value);
    layers.forEach((layer, i) => {
      layer.style.opacity = Math.max(0, 1 - Math.abs(at - (i + 1)));
    });
    stops.forEach((stop, i) => stop.classList.toggle("now", i === Math.round(at)));
    const [from, to] = [stops[Math.floor(at)].textContent, stops[Math.ceil(at)].textContent];
    slider.setAttribute("aria-valuetext", from === to ? from : `between ${from} and ${to}`);
  };
  stops.forEach((stop, i) =>
    stop.addEventListener("click", () => {
      slider.value = i;
      show();
    }),
  );
  slider.addEventListener("input", show);
  show(); // browsers keep a slider's place when a page is loaded again
}
