// SPDX-License-Identifier: GPL-2.0-only
// What of the page's visible text has less than 4.5:1 contrast to its background, as selector: ratio.
function numbers(colour) {
  const found = colour.match(/[\d.]+/g).map(Number);
  return found.length > 3 && found[3] === 0 ? null : found.slice(0, 3);
}
function luminance(colour) {
  const [r, g, b] = colour.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(element) {
  for (let e = element; e; e = e.parentElement) {
    const colour = numbers(getComputedStyle(e).backgroundColor);
    if (colour) return colour;
  }
  return [255, 255, 255];
}
const poor = {};
for (const element of document.querySelectorAll("body *:not(script):not(style)")) {
  const says = Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.data.trim());
  if (!says || element.closest("svg") || !element.checkVisibility()) continue;
  const [a, b] = [luminance(numbers(getComputedStyle(element).color)), luminance(behind(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor[`${element.tagName}.${element.className} in .${element.parentElement.className}`] = ratio.toFixed(2);
}
return poor;
