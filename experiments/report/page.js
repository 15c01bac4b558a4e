// Filters, whole pictures, and the page of a run that goes on. What is filtered stands in the address, so a link keeps it.
(() => {
  const form = document.querySelector(".filters");
  const cards = [...document.querySelectorAll(".card")];
  const places = [...document.querySelectorAll(".at")];
  const dialog = document.querySelector("dialog.large");
  const boxes = [...form.querySelectorAll("[name=method]")];
  const fields = ["from", "to", "words", "right"];
  let touched = 0;

  const hidden = () => boxes.filter((box) => !box.checked).map((box) => box.value);
  const last = Number(form.elements.to.max);

  function remember() {
    const state = new URLSearchParams();
    fields.forEach((name) => { if (form.elements[name].value) state.set(name, form.elements[name].value); });
    hidden().forEach((name) => state.append("off", name));
    history.replaceState(null, "", String(state) ? `#${state}` : "#");
  }

  function filter() {
    const words = form.elements.words.value.trim().toLowerCase();
    const right = form.elements.right.value;
    let shown = 0;
    cards.forEach((card) => {
      const wanted = card.dataset.words.toLowerCase().includes(words) && (!right || card.dataset.right === right);
      card.hidden = !wanted;
      shown += wanted;
    });
    const from = Number(form.elements.from.value || 0);
    const to = form.elements.to.value === "" ? last : Number(form.elements.to.value);
    places.forEach((place) => { place.hidden = place.dataset.step < from || place.dataset.step > to; });
    form.elements.shown.value = cards.length && (words || right) ? `${shown} of ${cards.length}` : "";
    return [from, to];
  }

  function apply() {
    const [from, to] = filter();
    charts.zoom(form.elements.from.value || form.elements.to.value ? [from, to] : null);
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    fields.forEach((name) => { if (state.has(name)) form.elements[name].value = state.get(name); });
    const off = state.getAll("off");
    boxes.forEach((box) => { box.checked = !off.includes(box.value); });
    if (off.length) charts.show(off);
  }

  recall();
  apply();
  form.addEventListener("input", (event) => {
    if (event.target.name === "method") charts.show(hidden());
    else apply();
    remember();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { charts.show([]); apply(); remember(); }));
  charts.onZoom((range) => {
    form.elements.from.value = range ? Math.max(0, Math.floor(range[0])) : "";
    form.elements.to.value = range ? Math.ceil(range[1]) : "";
    filter();
    remember();
  });

  function enlarge(picture) {
    dialog.querySelector("img")?.remove();
    dialog.querySelector("form").after(Object.assign(new Image(), { src: picture.src, alt: picture.alt }));
    dialog.querySelector(".read").textContent = picture.alt;
    dialog.querySelector(".prompt").textContent = picture.closest(".card").querySelector(".prompt").textContent;
    dialog.showModal();
  }
  document.addEventListener("click", (event) => {
    if (event.target.matches(".shot img")) enlarge(event.target);
    else if (event.target === dialog) dialog.close();
    else if (event.target.matches("a[href^='#run-']")) document.querySelector(event.target.getAttribute("href")).open = true;
  });
  document.addEventListener("keydown", (event) => {
    touched = Date.now();
    if (event.key === "Enter" && event.target.matches(".shot img")) enlarge(event.target);
  });
  ["pointerdown", "pointermove", "wheel"].forEach((name) => addEventListener(name, () => { touched = Date.now(); }, { passive: true }));

  const closed = [...document.querySelectorAll("details.run")];
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = closed.filter((part) => !part.open);
    opened.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));

  const seconds = Number(document.body.dataset.reload || 0);
  if (seconds) setInterval(() => {
    if (!dialog.open && Date.now() - touched > 3000) location.reload();
  }, seconds * 1000);
})();
