package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

// validation is the answer of `writ validate -o json`.
type validation struct {
	Valid    bool              `json:"valid"`
	Problems []meshdir.Problem `json:"problems"`
}

func validateCommand() *cobra.Command {
	var o output
	var state string
	c := &cobra.Command{
		Use:   "validate DIR",
		Short: "Check a mesh directory without running it",
		Long: `Check every file of a mesh directory with the code that pilot reads it with:
unknown fields, wrong types, references to nothing, Rego that does not compile;
and its tables of plans, plans/*.plans, with the code of ratelimit.
Exit code 0: valid (warnings allowed); 1: not; 2: cannot tell.`,
		Example: "  writ validate examples/bookinfo",
		Args:    oneDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			if info, err := os.Stat(args[0]); err != nil || !info.IsDir() {
				return fmt.Errorf("%s is no mesh directory: give a directory with YAML files, such as examples/bookinfo", args[0])
			}
			reserved, err := stack.Reserved(args[0], state)
			if err != nil {
				return err
			}
			mesh, problems := meshdir.Validate(meshdir.Options{Dir: args[0], Reserved: reserved, CompileRego: rego.Check, SplitRego: new(rego.Splitter).Split})
			missing, err := stack.MissingPrograms(args[0])
			if err != nil {
				return err
			}
			problems = append(problems, missing...)
			problems = append(problems, planProblems(args[0], mesh)...)
			v := validation{Valid: len(meshdir.Errors(problems)) == 0, Problems: problems}
			if v.Problems == nil {
				v.Problems = []meshdir.Problem{}
			}
			err = o.print(cmd.OutOrStdout(), v, func(w io.Writer) error { return printValidation(w, args[0], v) })
			if err == nil && !v.Valid {
				return errNo
			}
			return err
		},
	}
	o.register(c)
	c.Flags().StringVar(&state, "state", "", "the state `directory`, if writ up is given one (default DIR/.writ): nothing may name a file in it")
	return c
}

func printValidation(w io.Writer, dir string, v validation) error {
	for _, p := range v.Problems {
		if _, err := fmt.Fprintln(w, problemLine(dir, problemOf(p))); err != nil {
			return err
		}
	}
	errs := len(meshdir.Errors(v.Problems))
	warnings := ""
	if n := len(v.Problems) - errs; n > 0 {
		warnings = ", " + count(n, "warning")
	}
	if !v.Valid {
		_, err := fmt.Fprintf(w, "%s is not valid: %s%s\n", dir, count(errs, "error"), warnings)
		return err
	}
	_, err := fmt.Fprintf(w, "%s is valid%s\n", dir, warnings)
	return err
}
