/** uPlot with its stylesheet: a part of its own, loaded when the first chart is drawn. */

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export default uPlot;
export const paths = uPlot.paths;
