"use strict";

/* Pointers, wheel and keys on the canvas; slider and buttons below it. */
function connect(section, scene) {
  const canvas = section.querySelector("canvas"), view = moleculeView(canvas, scene);
  const [slider, overlay] = ["range", "checkbox"].map((type) => section.querySelector(`input[type=${type}]`));
  const pointers = new Map(), count = scene.frames.length;
  let scrolled = -Infinity;

  function show(frame) {
    frame = Math.min(count - 1, Math.max(0, frame));
    view.set({ frame });
    slider.value = frame;
    section.querySelector("output").textContent = `Frame ${frame + 1} of ${count}: ${scene.energies[frame]} kT`;
    for (const button of section.querySelectorAll("[data-step]"))
      button.disabled = !(frame + Number(button.dataset.step) in scene.frames);
  }

  slider.addEventListener("input", () => show(Number(slider.value)));
  overlay.addEventListener("change", () => view.set({ all: overlay.checked }));
  section.querySelector("[data-reset]").addEventListener("click", view.reset);
  for (const button of section.querySelectorAll("[data-step]"))
    button.addEventListener("click", () => show(view.frame() + Number(button.dataset.step)));

  canvas.addEventListener("pointerdown", (event) => pointers.set(event.pointerId, event));
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, (event) => pointers.delete(event.pointerId));
  addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    pointers.set(event.pointerId, event);
    const other = [...pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    const apart = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY) || 1;
    if (other) view.zoomBy(apart(event) / apart(before));
    else view.turnBy((event.clientX - before.clientX) / 120, (event.clientY - before.clientY) / 120);
  });

  /* A scroll that began outside goes on over the canvas; it does not turn into a zoom. */
  addEventListener("wheel", (event) => {
    if (event.target !== canvas || event.timeStamp - scrolled < 250) { scrolled = event.timeStamp; return; }
    event.preventDefault();
    view.zoomBy(Math.exp(-Math.max(-60, Math.min(60, event.deltaY * (event.deltaMode ? 20 : 1))) / 400));
  }, { passive: false });

  const keys = {
    ArrowLeft: () => view.turnBy(-0.15, 0), ArrowRight: () => view.turnBy(0.15, 0),
    ArrowUp: () => view.turnBy(0, -0.15), ArrowDown: () => view.turnBy(0, 0.15),
    "+": () => view.zoomBy(1.15), "=": () => view.zoomBy(1.15), "-": () => view.zoomBy(1 / 1.15), Home: view.reset,
    PageUp: () => show(view.frame() - 1), PageDown: () => show(view.frame() + 1),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });

  new ResizeObserver(view.later).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", view.later);
  show(0);
  view.draw();
}

addEventListener("load", () => {
  const section = document.getElementById("viewer"), root = document.documentElement;
  if (section) connect(section, JSON.parse(section.querySelector("script").textContent));
  root.dataset.images = [...document.images].filter((image) => image.naturalWidth > 0).length;
  root.dataset.ready = "true";
});
