/* What the page asks of its server; addresses are relative, so each begins with the page's token. */

/** The facts of the run. */
export async function facts() {
  const answer = await fetch("run");
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

/** Ask, and hand on each event as it comes; whoever aborts the signal ends the work on the server too. */
export async function stream(path, body, signal, take) {
  const answer = await fetch(path, {
    method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (kept + value).split("\n");
    kept = lines.pop();
    for (const line of lines) take(JSON.parse(line));
  }
}

/** Whether an error is only that the user has stopped it. */
export const isStop = (error) => error.name === "AbortError";

/** What went wrong, in words; a browser's own say nothing of a server that has ended. */
export const words = (error) => (error instanceof TypeError ? "faisca play does not answer: is it still running?" : error.message);

/** An element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const { aria = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(name === "role" ? name : `aria-${name}`, value);
  element.append(...children);
  return element;
}
