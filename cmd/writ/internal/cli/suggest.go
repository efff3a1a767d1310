package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/cmd/writ/internal/replay"
)

func suggestCommand() *cobra.Command {
	var o output
	var from recordedFlags
	var workload string
	c := &cobra.Command{
		Use:   "suggest --to NAMESPACE/ACCOUNT [DIR]",
		Short: "Write the least policy that allows what was seen",
		Long: `Write an AuthorizationPolicy that allows the recorded requests to the workloads of a
service account that were allowed, and nothing else: for each caller its methods and
paths. Parts of paths that are numbers or identifiers become {*}. It is a dry run:
put it into the mesh directory, let it observe, and promote it. Envoys report the
requests that they allow only when they are asked to: see writ record.
Exit code 0: here it is; 2: nothing was seen.`,
		Example: "  writ suggest --to default/bookinfo-reviews examples/bookinfo > examples/bookinfo/policies/reviews.yaml",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			if workload == "" {
				return errors.New("name who is called: --to NAMESPACE/ACCOUNT")
			}
			dir := meshDir(args)
			m, err := readMesh(dir)
			if err != nil {
				return err
			}
			s, err := replay.Suggest(m, workload, from.source(dir, cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), s, func(w io.Writer) error {
				_, err := fmt.Fprint(w, s.YAML())
				return err
			})
		},
	}
	o.register(c)
	from.register(c)
	c.Flags().StringVar(&workload, "to", "", "the called `service account`, NAMESPACE/NAME")
	return c
}
