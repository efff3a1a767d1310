// Package cli holds the sub-commands of writ. Each has -o json, an exit code
// that scripts can use (0 yes, 1 no, 2 cannot tell) and a worked example.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/internal/version"
)

// errNo is the answer "no", already told to the user in full: exit code 1.
var errNo = errors.New("no")

// Exit codes.
const (
	exitYes        = 0
	exitNo         = 1
	exitCannotTell = 2
)

// Main runs the command line and returns the exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:   "writ",
		Short: "The policy and security authority for Envoy",
		Long: `Writ gives every workload an identity, decides who may call whom, counts what each
may use, and tells every Envoy so.

DIR is a mesh directory: what to run, and who may do what, in YAML. Where [DIR]
may be left out it is the current directory.
Exit codes: 0 yes, 1 no, 2 cannot tell. -o json prints for programs.`,
		Example:       "  writ up examples/bookinfo",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetVersionTemplate("writ {{.Version}}\n")
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(upCommand(), checkCommand(), validateCommand(), statusCommand(), getCommand(), waitCommand(), certsCommand(), nodesCommand(), rootsCommand(), revokeTokensCommand(), explainCommand(), whoCanCommand(), diffCommand(), replayCommand(), promoteCommand(), suggestCommand(), recordCommand(), limitsCommand(), proxyConfigCommand(), bootstrapCommand(), versionCommand())
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitYes
	case errors.Is(err, errNo):
		return exitNo
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintln(stderr, "writ:", line)
	}
	var code codeError
	if errors.As(err, &code) {
		return code.code
	}
	return exitCannotTell
}

// codeError is an error with an exit code of its own.
type codeError struct {
	error
	code int
}

func (e codeError) Unwrap() error { return e.error }

// failed marks an error as "no" rather than "cannot tell".
func failed(err error) error {
	if err == nil {
		return nil
	}
	return codeError{err, exitNo}
}

// output is the -o flag.
type output string

func (o *output) register(c *cobra.Command) {
	c.Flags().StringVarP((*string)(o), "output", "o", "table", "how to print: table or json")
}

// known is for commands that take a while before they print.
func (o *output) known() error {
	if *o != "table" && *o != "json" && *o != "" {
		return fmt.Errorf("-o %q: want table or json", string(*o))
	}
	return nil
}

// print writes v as JSON, or calls table.
func (o *output) print(w io.Writer, v any, table func(io.Writer) error) error {
	if err := o.known(); err != nil {
		return err
	}
	if *o != "json" {
		return table(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// arguments wants from least to most arguments; what tells which.
func arguments(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return fmt.Errorf("name %s, for example:\n%s", what, cmd.Example)
		}
		return nil
	}
}

// oneDir wants the mesh directory as the only argument, anyDir takes it.
var (
	oneDir = arguments(1, 1, "one mesh directory")
	anyDir = arguments(0, 1, "one mesh directory, or none for the current one")
)

// stateFlag says where the state of a running mesh is.
func stateFlag(c *cobra.Command, state *string) {
	c.Flags().StringVar(state, "state", "", "the state `directory`, if writ up was given one (default DIR/.writ)")
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  writ version",
		Args:    arguments(0, 0, "nothing"),
		Run:     func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "writ "+version.String()) },
	}
}

// meshDir is the optional positional argument that names the mesh directory.
func meshDir(args []string) string {
	if len(args) == 0 {
		return "."
	}
	return args[0]
}
