/* As the system has it, light, dark; remembered by the browser. */
const root = document.documentElement, themes = ["system", "light", "dark"];

export function wireTheme(button) {
  const dress = (theme) => {
    if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = `theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "system") + 1) % themes.length];
    localStorage.setItem("faisca-theme", next);
    dress(next);
  });
  const kept = localStorage.getItem("faisca-theme");
  dress(themes.includes(kept) ? kept : "system");
}
