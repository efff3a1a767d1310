package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/writ-mesh/writ/cmd/writ/internal/check"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

// shortKinds are what people call kinds.
var shortKinds = map[string]string{
	"vs": "VirtualService", "dr": "DestinationRule", "gw": "Gateway", "se": "ServiceEntry", "we": "WorkloadEntry", "wg": "WorkloadGroup",
	"pa": "PeerAuthentication", "ra": "RequestAuthentication", "ap": "AuthorizationPolicy", "svc": "Service", "sa": "ServiceAccount", "ns": "Namespace",
}

// gotten is a row of `writ get`.
type gotten struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	File      string `json:"file"`
	Line      int    `json:"line"`
	Object    any    `json:"object"`
	node      *yaml.Node
}

func getCommand() *cobra.Command {
	var o output
	var source meshSource
	var name, namespace string
	var asYAML bool
	c := &cobra.Command{
		Use:   "get KIND [DIR]",
		Short: "List the objects of a mesh directory, or those in force",
		Long: `List the objects of one kind, or of all kinds, and where they are written; with
--yaml print them. Kinds may be written as for kubectl: VirtualService,
virtualservices, vs. What has errors is left out (writ validate tells them); with
--live what is in force in the mesh that runs is listed, which may be an earlier
content. What is secret in a Secret is not shown.
Exit code 0: some are shown; 1: there are none such; 2: cannot tell.`,
		Example: "  writ get virtualservices examples/bookinfo --yaml\n  writ get all examples/bookinfo --live",
		Args:    arguments(1, 2, `one kind or "all", and the mesh directory unless it is the current one`),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := kindCalled(args[0])
			if err != nil {
				return err
			}
			dir := meshDir(args[1:])
			objects, err := source.objects(cmd.Context(), args[1:])
			if err != nil {
				return err
			}
			rows := []gotten{}
			for _, l := range objects {
				if kind != "" && l.Kind != kind || name != "" && l.Name != name || namespace != "" && l.Namespace != namespace {
					continue
				}
				row := gotten{Kind: l.Kind, Namespace: l.Namespace, Name: l.Name, File: l.File, Line: l.Line, node: l.Object}
				if err := l.Object.Decode(&row.Object); err != nil {
					return fmt.Errorf("%s: %w", l.Ref, err)
				}
				rows = append(rows, row)
			}
			err = o.print(cmd.OutOrStdout(), rows, func(w io.Writer) error {
				if asYAML {
					return printYAML(w, rows)
				}
				return printGotten(w, dir, rows)
			})
			if err == nil && len(rows) == 0 {
				return failed(fmt.Errorf("there are none such in %s", dir))
			}
			return err
		},
	}
	o.register(c)
	source.register(c)
	c.Flags().StringVar(&name, "name", "", "only the one of this `name`")
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "only those of this `namespace`")
	c.Flags().BoolVar(&asYAML, "yaml", false, "print the objects as they are written")
	c.MarkFlagsMutuallyExclusive("yaml", "output")
	return c
}

// kindCalled finds a kind by what it is called, "" for all.
func kindCalled(word string) (string, error) {
	lower := strings.ToLower(word)
	if lower == "all" {
		return "", nil
	}
	if kind, ok := shortKinds[lower]; ok {
		return kind, nil
	}
	for _, kind := range meshdir.Kinds() {
		k := strings.ToLower(kind)
		if slices.Contains([]string{k, k + "s", strings.TrimSuffix(k, "y") + "ies"}, lower) {
			return kind, nil
		}
	}
	return "", fmt.Errorf("%q is no kind: there are %s", word, strings.Join(meshdir.Kinds(), ", "))
}

// objects gives those of a directory, or those in force.
func (s *meshSource) objects(ctx context.Context, args []string) ([]meshdir.Listed, error) {
	if s.running() {
		r, err := s.configuration(ctx, args)
		if err != nil {
			return nil, err
		}
		return meshdir.Objects(r.GetFiles()), nil
	}
	dir := meshDir(args)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%s is no mesh directory", dir)
	}
	objects, problems, err := meshdir.ReadObjects(dir)
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%s", problemLine(dir, problemOf(problems[0])))
	}
	return objects, err
}

func printGotten(out io.Writer, dir string, rows []gotten) error {
	if len(rows) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KIND\tNAMESPACE\tNAME\tWRITTEN IN")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s:%d\n", r.Kind, check.Dash(r.Namespace), r.Name, filepath.Join(dir, r.File), r.Line)
	}
	return w.Flush()
}

func printYAML(w io.Writer, rows []gotten) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	for _, r := range rows {
		if err := enc.Encode(r.node); err != nil {
			return err
		}
	}
	return enc.Close()
}
