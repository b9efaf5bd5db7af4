// A page that has AG-UI's HttpAgent.

import { HttpAgent } from "ag-ui";

window.HttpAgent = HttpAgent;
