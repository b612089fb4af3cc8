/** Dark or light: as the system says, until a person chooses. */

const KEY = "claude-proxy.theme";
export type Choice = "system" | "light" | "dark";
const NEXT: Record<Choice, Choice> = { system: "light", light: "dark", dark: "system" };

function stored(): Choice {
  const value = localStorage.getItem(KEY);
  return value === "light" || value === "dark" ? value : "system";
}

class Theme {
  choice = $state<Choice>(stored());

  constructor() {
    this.#apply();
  }

  next(): void {
    this.choice = NEXT[this.choice];
    if (this.choice === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, this.choice);
    this.#apply();
  }

  #apply(): void {
    if (this.choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.choice;
  }
}

export const theme = new Theme();
