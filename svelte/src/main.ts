/** What the page needs first is asked for before the page is here. */

import { ask } from "./lib/early";
import { firstOf } from "./lib/first";

ask("/api/viewer");
for (const address of firstOf(location.hash)) ask(address);
void import("./page");
