"use strict";
(() => {
  const settings = JSON.parse(document.getElementById("settings").textContent);
  const entries = JSON.parse(document.getElementById("entries").textContent);
  const $ = (id) => document.getElementById(id);
  const STEP = 48; // cards that are added at a time
  const several = settings.models.length > 1;
  const scores = settings.scores;
  const main = scores.map((score, place) => ({ ...score, place })).filter((score) => score.main);
  const show = (value) => (value === null || value === undefined ? "–" : Math.abs(value) < 1000 ? value.toFixed(3) : value.toFixed(0));

  /** An element with a class and text; text only, never markup. */
  function make(kind, name, text) {
    const element = document.createElement(kind);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  /** What a reader or judge said, for the card: the first details that hold it. */
  function said(entry) {
    const key = Object.keys(entry.d).find((name) => /_(read|answer|said|reason)$/.test(name));
    return key === undefined ? null : entry.d[key];
  }

  for (const entry of entries) {
    entry.text = [entry.p, entry.f, entry.id, entry.e || "", ...Object.values(entry.d)].join("\n").toLowerCase();
  }

  // Units are what a card shows: one image, or a prompt's images of all models.
  const singles = entries.map((entry) => [entry]);
  const byPrompt = new Map();
  for (const entry of entries) {
    const key = JSON.stringify([entry.id, entry.k]);
    if (!byPrompt.has(key)) byPrompt.set(key, []);
    byPrompt.get(key).push(entry);
  }
  const groups = [...byPrompt.values()];

  function option(select, value, text) {
    const made = make("option", "", text);
    made.value = value;
    select.append(made);
  }
  option($("sort"), "", "order of the table");
  scores.forEach((score, place) => option($("sort"), String(place), score.name));
  if (several) scores.forEach((score, place) => option($("sort"), `d${place}`, `difference in ${score.name}`));
  scores.forEach((score, place) => option($("column"), String(place), score.name));
  option($("model"), "", "all");
  settings.models.forEach((model) => option($("model"), model, model));
  $("only-model").hidden = $("view-choice").hidden = !several;
  $("only-model").style.display = $("view-choice").style.display = several ? "" : "none";

  function matches(entry) {
    const place = Number($("column").value);
    const value = entry.s[place];
    const least = $("least").value, most = $("most").value, state = $("state").value;
    if ((least !== "" || most !== "") && value === null) return false;
    if (least !== "" && value < Number(least)) return false;
    if (most !== "" && value > Number(most)) return false;
    if (state === "scored" && value === null) return false;
    if (state === "none" && (value !== null || entry.e)) return false;
    if (state === "failed" && !entry.e) return false;
    return $("search").value === "" || entry.text.includes($("search").value.toLowerCase());
  }

  function mean(values) {
    const there = values.filter((value) => value !== null);
    return there.length ? there.reduce((sum, value) => sum + value, 0) / there.length : null;
  }

  /** What a unit is sorted by; null comes last. */
  function keyOf(unit) {
    const chosen = $("sort").value;
    if (chosen === "") return null;
    if (!chosen.startsWith("d")) return mean(unit.map((entry) => entry.s[Number(chosen)]));
    const values = unit.map((entry) => entry.s[Number(chosen.slice(1))]);
    return values.length < 2 || values[0] === null || values[values.length - 1] === null ? null : values[0] - values[values.length - 1];
  }

  let units = [], drawn = 0, open = -1;

  function update() {
    const side = several && $("view").value === "side";
    const model = $("model").value;
    const source = side ? groups : singles;
    units = source.map((unit) => unit.filter((entry) => !model || entry.m === model)).filter((unit) => unit.some(matches));
    const chosen = $("sort").value;
    if (chosen !== "") {
      const up = scores[Number(chosen.replace("d", ""))].up;
      const sign = ($("order").value === "best") === up ? -1 : 1;
      const keys = new Map(units.map((unit) => [unit, keyOf(unit)]));
      units.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
      });
    } else if ($("order").value === "worst") units.reverse();
    $("cards").className = `cards${side ? " side" : ""}${side && settings.models.length > 2 ? " many" : ""}`;
    $("cards").replaceChildren();
    drawn = 0;
    const what = side ? "prompts" : "images";
    $("found").textContent = `${units.length} of ${(side ? groups : singles).length} ${what}`;
    more();
  }

  function more() {
    const fragment = document.createDocumentFragment();
    for (const unit of units.slice(drawn, drawn + STEP)) fragment.append(card(unit, units.indexOf(unit, drawn)));
    drawn = Math.min(drawn + STEP, units.length);
    $("cards").append(fragment);
  }

  function card(unit, index) {
    const made = make("article", "card");
    if (unit.length > 1) {
      made.append(make("p", "prompt", unit[0].p));
      const sides = make("div", "sides");
      unit.forEach((entry) => sides.append(picture(entry, index, unit)));
      made.append(sides);
    } else {
      made.append(picture(unit[0], index, unit), make("p", "prompt", unit[0].p));
    }
    return made;
  }

  function picture(entry, index, unit) {
    const part = make("div", "");
    if (several) part.append(make("p", "model", entry.m));
    const button = make("button", "shot");
    button.type = "button";
    button.setAttribute("aria-label", `open ${entry.f}`);
    button.addEventListener("click", () => view(index));
    if (entry.src) {
      const image = make("img");
      image.loading = "lazy";
      image.decoding = "async";
      image.alt = entry.p;
      image.addEventListener("load", () => { if (image.naturalWidth > 2 * image.naturalHeight) image.style.height = "96px"; });
      image.src = entry.thumb || entry.src;
      button.append(image);
    } else button.append(make("span", "nothing", "no image"));
    part.append(button);
    const text = said(entry);
    if (text !== null) part.append(make("p", "read soft", text === "" ? "(nothing read)" : String(text)));
    const chips = make("div", "chips");
    for (const score of main) {
      const values = unit.map((each) => each.s[score.place]).filter((value) => value !== null);
      const value = entry.s[score.place];
      const best = unit.length > 1 && value !== null && value === (score.up ? Math.max : Math.min)(...values) && new Set(values).size > 1;
      chips.append(make("span", `chip${best ? " best" : ""}`, `${score.name} ${show(value)}`));
    }
    if (entry.e) chips.append(make("span", "chip bad", "failed"));
    part.append(chips);
    return part;
  }

  function view(index) {
    open = index;
    const unit = units[index];
    const views = make("div", "views");
    unit.forEach((entry) => views.append(whole(entry)));
    const prompt = make("p", "prompt", unit[0].p);
    $("shown").replaceChildren(prompt, views);
    $("place").textContent = `${index + 1} of ${units.length}`;
    $("previous").disabled = index === 0;
    $("next").disabled = index === units.length - 1;
    if (!$("viewer").open) $("viewer").showModal();
    $("viewer").scrollTop = 0;
  }

  function whole(entry) {
    const part = make("div", "view");
    if (several) part.append(make("p", "model", entry.m));
    if (entry.src) {
      const image = make("img");
      image.alt = entry.p;
      image.src = entry.src;
      part.append(image);
    } else part.append(make("span", "nothing", "no image"));
    part.append(make("p", "fact", [entry.f, entry.size ? `${entry.size} px` : "", `prompt ${entry.id}`].filter(Boolean).join(" · ")));
    const list = make("dl", "pairs");
    const add = (name, value, kind) => list.append(make("dt", kind, name), make("dd", kind, value));
    if (entry.t.length) add("wanted text", entry.t.join("\n"));
    for (const reward of new Set(scores.map((score) => score.reward))) {
      scores.forEach((score, place) => { if (score.reward === reward) add(score.name, show(entry.s[place]), score.main ? "main" : ""); });
      for (const [name, value] of Object.entries(entry.d)) {
        const owner = main.map((score) => score.name).filter((each) => name.startsWith(`${each}_`)).sort((a, b) => b.length - a.length)[0];
        if (owner === reward) add(name.slice(reward.length + 1).replaceAll("_", " "), value === "" ? "(nothing)" : String(value));
      }
    }
    if (entry.e) add("error", entry.e, "bad");
    part.append(list);
    return part;
  }

  const step = (by) => { if (open + by >= 0 && open + by < units.length) view(open + by); };
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
  document.addEventListener("keydown", (event) => {
    if (!$("viewer").open) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  let waiting = 0;
  $("controls").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 80); });
  $("controls").addEventListener("reset", () => setTimeout(update));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  new IntersectionObserver((found) => { if (found[0].isIntersecting && drawn < units.length) more(); }, { rootMargin: "600px" }).observe($("end"));
  update();
})();
