"use strict";

/* A molecule as balls and sticks on a canvas: x to the right, y up, z towards the reader. Far things are painted first. */
function moleculeView(canvas, scene) {
  const pen = canvas.getContext("2d");
  const EYE = 4.5, FOG = 0.55; // distance of the eye in radii of the molecule; how much the farthest fade
  const STICK = 0.0115, THREAD = 0.0035, RIM = 0.0045, FILL = 0.5; // nm; share of the canvas that the radius takes
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const mix = (a, b, share) => a.map((value, k) => value + share * (b[k] - value));
  const css = (colour) => `rgb(${colour.map(Math.round).join()})`;
  const BLACK = [0, 0, 0], WHITE = [255, 255, 255];
  const balls = scene.elements.map(([colour, radius]) => ({ colour: rgb(colour), radius }));
  const stops = scene.colours.map(rgb);
  const shades = scene.shades.map((shade) => {
    const at = Math.min(Math.floor(shade * (stops.length - 1)), stops.length - 2);
    return mix(stops[at], stops[at + 1], shade * (stops.length - 1) - at);
  });
  const view = { frame: 0, all: false, zoom: 1, turn: [1, 0, 0, 0, 1, 0, 0, 0, 1] };
  let size = [0, 0], stage = WHITE, waiting = false;

  function resize() {
    const ratio = window.devicePixelRatio || 1;
    size = [canvas.clientWidth, canvas.clientHeight];
    const [width, height] = size.map((length) => Math.max(1, Math.round(length * ratio)));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    pen.setTransform(width / (size[0] || 1), 0, 0, height / (size[1] || 1), 0, 0);
    stage = (getComputedStyle(canvas).backgroundColor.match(/[\d.]+/g) || WHITE).slice(0, 3).map(Number);
  }

  /* The atoms of a frame, turned, in nm. */
  function turned(frame) {
    const r = view.turn, numbers = scene.frames[frame];
    return scene.atoms.map((_, atom) => {
      const [x, y, z] = [0, 1, 2].map((k) => numbers[3 * atom + k] * scene.unit);
      return [0, 3, 6].map((row) => r[row] * x + r[row + 1] * y + r[row + 2] * z);
    });
  }

  /* Where a point appears: left, top, pixels per nm there, and how much it fades. */
  function seen([x, y, z]) {
    const scale = (FILL * view.zoom * Math.min(...size)) / scene.radius;
    const pixels = scale / Math.max(0.2, 1 - z / (EYE * scene.radius));
    const depth = Math.min(1, Math.max(0, 0.5 - z / (2 * scene.radius)));
    return [size[0] / 2 + x * pixels, size[1] / 2 - y * pixels, pixels, FOG * depth * depth];
  }

  function stick(colour, from, to, thickness) {
    const [x0, y0, pixels, fog] = seen(from), [x1, y1] = seen(to);
    const width = thickness * 2 * pixels, length = Math.hypot(x1 - x0, y1 - y0) || 1;
    let [nx, ny] = [(y1 - y0) / length, (x0 - x1) / length];
    if (nx + ny > 0) [nx, ny] = [-nx, -ny]; // light from the upper left
    const shade = (other, share) => css(mix(mix(colour, other, share), stage, fog));
    const [cx, cy, half] = [(x0 + x1) / 2, (y0 + y1) / 2, width / 2];
    const across = pen.createLinearGradient(cx + nx * half, cy + ny * half, cx - nx * half, cy - ny * half);
    across.addColorStop(0, shade(BLACK, 0.15));
    across.addColorStop(0.3, shade(WHITE, 0.3));
    across.addColorStop(0.55, shade(BLACK, 0));
    across.addColorStop(1, shade(BLACK, 0.5));
    line(across, x0, y0, x1, y1, width);
  }

  function line(style, x0, y0, x1, y1, width) {
    Object.assign(pen, { strokeStyle: style, lineWidth: width, lineCap: "round" });
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
    pen.stroke();
  }

  function thread(colour, from, to) {
    const [x0, y0, pixels, fog] = seen(from), [x1, y1] = seen(to), width = THREAD * 2 * pixels;
    line(css(mix(mix(colour, BLACK, 0.35), stage, fog)), x0, y0, x1, y1, width + 1);
    line(css(mix(colour, stage, fog)), x0, y0, x1, y1, width);
  }

  function ball(element, rim, centre, share) {
    const [x, y, pixels, fog] = seen(centre), radius = share * element.radius * pixels;
    const shade = (colour, other, part) => css(mix(mix(colour, other, part), stage, fog));
    disc(shade(rim, BLACK, 0.45), x, y, radius + RIM * pixels + 0.75);
    disc(shade(rim, BLACK, 0), x, y, radius + RIM * pixels);
    const light = pen.createRadialGradient(x - 0.35 * radius, y - 0.4 * radius, 0, x, y, radius);
    light.addColorStop(0, shade(element.colour, WHITE, 0.85));
    light.addColorStop(0.25, shade(element.colour, WHITE, 0.3));
    light.addColorStop(0.6, shade(element.colour, BLACK, 0));
    light.addColorStop(1, shade(element.colour, BLACK, 0.45));
    disc(light, x, y, radius);
  }

  function disc(style, x, y, radius) {
    pen.fillStyle = style;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  }

  function draw() {
    waiting = false;
    resize();
    pen.clearRect(0, 0, ...size);
    const things = []; // [depth, painter, its arguments]
    for (let frame = 0; view.all && frame < scene.frames.length; frame++) {
      if (frame === view.frame) continue;
      const points = turned(frame);
      for (const [i, j] of scene.bonds)
        things.push([(points[i][2] + points[j][2]) / 2, thread, shades[frame], points[i], points[j]]);
    }
    const points = turned(view.frame), colour = shades[view.frame], share = view.all ? 0.55 : 1;
    scene.atoms.forEach((kind, atom) => things.push([points[atom][2], ball, balls[kind], colour, points[atom], share]));
    for (const [i, j] of scene.bonds) {
      const length = Math.hypot(...points[i].map((value, k) => value - points[j][k])) || 1;
      const middle = mix(points[i], points[j], 0.5);
      for (const end of [i, j]) { // a half starts at the surface of its ball: it may point at the reader
        const start = mix(points[end], middle, Math.min(1, (2 * share * balls[scene.atoms[end]].radius) / length));
        things.push([(start[2] + middle[2]) / 2, stick, colour, start, middle, share * STICK]);
      }
    }
    things.sort((a, b) => a[0] - b[0]);
    for (const [, paint, ...given] of things) paint(...given);
    canvas.dataset.drawn = scene.atoms.length;
  }

  function later() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  /* About the vertical and the horizontal axis of the screen, in rad. */
  function turnBy(right, down) {
    const [c, s, d, t] = [Math.cos(right), Math.sin(right), Math.cos(down), Math.sin(down)];
    const by = [c, 0, s, t * s, d, -t * c, -d * s, t, d * c];
    view.turn = view.turn.map((_, k) =>
      [0, 1, 2].reduce((sum, m) => sum + by[3 * Math.floor(k / 3) + m] * view.turn[3 * m + (k % 3)], 0));
    later();
  }

  function zoomBy(factor) {
    view.zoom = Math.min(8, Math.max(0.3, view.zoom * factor));
    later();
  }

  const set = (changes) => { Object.assign(view, changes); later(); };
  const start = { turn: view.turn, zoom: 1 };
  return { draw, later, turnBy, zoomBy, set, reset: () => set(start), frame: () => view.frame };
}
