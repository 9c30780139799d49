"""Networks from and for elsewhere: published weights in, a plain network out."""
