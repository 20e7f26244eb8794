// Keeps a page as the daemon would draw it now: told of an event, it asks for the page again and
// puts the parts in place that are not the same. What a program says is asked for as it comes.
"use strict";

(() => {
  const SETTLE_MS = 250;
  // However much happens, the daemon is asked no more often.
  const LEAST_MS = 1000;
  const PAUSE_MS = 1000;
  // Of what a program said, the end; the daemon has the whole.
  const PIECES_MOST = 4000;
  const LETTERS_MOST = 2 << 20;
  const AT_ONCE = 1 << 18;
  const main = document.getElementById("main");
  const sign = document.getElementById("sign");
  let live = main?.dataset.live;
  let stream = null;
  let planned = 0;
  let drawn = -LEAST_MS;
  let asking = false;
  let again = false;

  const say = (text) => {
    if (sign !== null) sign.textContent = text;
  };

  const pause = (time) => new Promise((done) => setTimeout(done, time));

  const visible = () =>
    new Promise((done) => {
      if (!document.hidden) return done();
      document.addEventListener("visibilitychange", () => visible().then(done), { once: true });
    });

  async function ask(address) {
    const answer = await fetch(address, { headers: { accept: "text/html" } });
    if (answer.status === 401) location.reload();
    if (!answer.ok) return null;
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  }

  function put(old, fresh) {
    if (fresh === null || fresh.isEqualNode(old)) return;
    const focused = document.activeElement;
    const address = old.contains(focused) ? focused.getAttribute("href") : null;
    const next = document.importNode(fresh, true);
    old.replaceWith(next);
    if (address !== null) next.querySelector(`[href="${CSS.escape(address)}"]`)?.focus();
  }

  async function redraw() {
    planned = 0;
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    try {
      const fresh = await ask(location.href);
      drawn = performance.now();
      if (fresh !== null) {
        live = fresh.getElementById("main")?.dataset.live ?? live;
        document.querySelectorAll("[data-part]").forEach((old) => {
          put(old, fresh.getElementById(old.id));
        });
        const said = document.getElementById("said");
        const another = fresh.getElementById("said");
        // Whoever follows one that goes on finds out by itself.
        if (another !== null && said?.dataset.ended !== undefined) {
          if (another.dataset.run !== said.dataset.run) {
            said.replaceWith(document.importNode(another, true));
            follow();
          }
        }
      }
    } catch {
      say("The daemon does not answer.");
    } finally {
      asking = false;
      if (again) {
        again = false;
        plan();
      }
    }
  }

  function plan() {
    const left = drawn + LEAST_MS - performance.now();
    if (planned === 0) planned = setTimeout(redraw, Math.max(SETTLE_MS, left));
  }

  function listen() {
    // One that nobody looks at takes no connection, of which a browser has few.
    if (document.hidden) {
      stream?.close();
      stream = null;
      return;
    }
    if (stream !== null) return;
    stream = new EventSource(live);
    stream.onopen = () => {
      say("Live");
      plan();
    };
    stream.onmessage = plan;
    stream.onerror = () => {
      say("Not live: the daemon is away.");
      if (stream?.readyState === EventSource.CLOSED) begin();
    };
  }

  // A stream that was refused is not tried again by the browser: the page tells why, or a new one.
  async function begin() {
    stream = null;
    await pause(PAUSE_MS);
    await redraw();
    if (stream === null) listen();
  }

  async function follow() {
    const said = document.getElementById("said");
    if (said === null) return;
    while (said.dataset.ended === undefined) {
      await visible();
      const place = `offset=${said.dataset.next}&limit=${AT_ONCE}&timeout_s=20`;
      const address = `${said.dataset.from}?${place}`;
      let fresh = null;
      try {
        fresh = (await ask(address))?.getElementById("said") ?? null;
      } catch {
        // It is away; the next look tells more.
      }
      if (fresh === null) {
        await pause(PAUSE_MS);
        continue;
      }
      const another = fresh.dataset.run !== said.dataset.run;
      if (another) said.replaceChildren();
      const atEnd = said.scrollTop + said.clientHeight >= said.scrollHeight - 4;
      if (!another) said.append(...[...fresh.children].map((each) => document.importNode(each, true)));
      let letters = said.textContent.length;
      while (said.children.length > PIECES_MOST || letters > LETTERS_MOST) {
        letters -= said.firstElementChild.textContent.length;
        said.firstElementChild.remove();
      }
      if (atEnd) said.scrollTop = said.scrollHeight;
      said.dataset.run = fresh.dataset.run;
      said.dataset.next = another ? "0" : fresh.dataset.next;
      if (fresh.dataset.ended !== undefined && !another) said.dataset.ended = "";
      if (fresh.children.length === 0) await pause(PAUSE_MS);
    }
  }

  if (live !== undefined) {
    document.addEventListener("visibilitychange", listen);
    listen();
  }
  follow();
})();
