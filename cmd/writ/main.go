// Command writ is the operator's command of Writ: it runs a mesh on this machine
// and checks, validates and shows one. `writ --help` lists what it can do.
package main

import (
	"os"

	"github.com/writ-mesh/writ/cmd/writ/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
