// Command step-ca serves a step-ca configuration, without the key managers and
// authorities of clouds that the released program has: they are half of its build.
package main

import (
	"fmt"
	"os"

	"github.com/smallstep/certificates/authority/config"
	"github.com/smallstep/certificates/ca"
	_ "github.com/smallstep/certificates/cas/softcas"
)

func main() {
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: step-ca CONFIG")
	}
	c, err := config.LoadConfiguration(args[0])
	if err != nil {
		return err
	}
	s, err := ca.New(c)
	if err != nil {
		return err
	}
	return s.Run()
}
