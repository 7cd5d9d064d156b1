// The theme: what the visitor chose last, else what the system says.
(() => {
  const KEY = "obliteratus-theme";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const wanted = () => localStorage.getItem(KEY) || (dark.matches ? "dark" : "light");
  const show = () => {
    const isDark = wanted() === "dark";
    document.documentElement.style.colorScheme = isDark ? "dark" : "light";
    if (document.body) document.body.classList.toggle("dark", isDark);
  };
  dark.addEventListener("change", show);
  document.addEventListener("click", (event) => {
    if (event.target.closest && event.target.closest("#theme-toggle")) {
      localStorage.setItem(KEY, wanted() === "dark" ? "light" : "dark");
      show();
    }
  });
  document.addEventListener("DOMContentLoaded", () => {
    document.documentElement.lang = "en";
    show();
    new MutationObserver(() => {  // gradio sets its own class when it starts
      if (document.body.classList.contains("dark") !== (wanted() === "dark")) show();
    }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  });
})();
// A report has no scripts and says nothing of its height: its frame is made as high as it is.
document.addEventListener("load", (event) => {
  const frame = event.target;
  if (!(frame instanceof HTMLIFrameElement) || !frame.contentDocument) return;
  const fit = () => { frame.style.height = `${frame.contentDocument.documentElement.scrollHeight + 8}px`; };
  fit();
  new ResizeObserver(fit).observe(frame.contentDocument.documentElement);
}, true);
